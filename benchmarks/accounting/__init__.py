"""Where the CPU of one request goes: `python -m benchmarks.accounting`."""
