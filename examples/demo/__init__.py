"""`make demo`: replicas that follow a scripted load, on one machine, in about a minute."""
