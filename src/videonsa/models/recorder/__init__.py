"""What looks on while a model attends: a protocol, and aggregators that keep sums, not tensors."""
