"""Sparse attention: tensors in, tensors out. Knows neither video nor models."""
