"""The frontend: queues requests, leases batches of them to replicas, answers callers."""
