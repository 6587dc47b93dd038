"""Decisions of the autoscaler: pure code, no IO, no clock, no randomness (C1)."""
