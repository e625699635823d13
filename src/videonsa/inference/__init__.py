"""Loading, asking and planning."""
