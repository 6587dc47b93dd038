"""Makes the model files of examples/models: `python -m examples.train [REPOSITORY]`."""
