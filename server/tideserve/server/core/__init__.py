"""Pure: queues, batches, leases and profiles. No clock, no IO, no randomness (C1)."""
