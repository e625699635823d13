"""Weights and configs on disk: read, checked, converted, merged, quantised."""
