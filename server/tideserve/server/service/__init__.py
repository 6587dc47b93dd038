"""What each call of the wire means: bytes to values, values to bytes."""
