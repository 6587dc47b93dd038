"""The simulator: the same cores as in the real processes, driven by a clock of its own."""
