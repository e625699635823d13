"""Measuring what a model understands."""
