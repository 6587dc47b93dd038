"""Whether memory stays flat: the server's, over many requests."""
