"""The command line `tideserve`."""
