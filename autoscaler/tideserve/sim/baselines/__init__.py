"""Other autoscalers, by their published rules, to compare with."""
