"""The autoscaler: decides how many replicas there should be, and starts and retires them."""
