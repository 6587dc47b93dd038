"""Where the autoscaler's knowledge of the fleet comes from."""
