"""Decoding: steps of a few text tokens after a cache, on tensors that do not move."""
