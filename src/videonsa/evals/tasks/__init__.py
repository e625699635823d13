"""What can be evaluated: one folder a task."""
