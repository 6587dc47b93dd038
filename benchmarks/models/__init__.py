"""The measured models that are not among the examples: scripts that write them, on demand."""
