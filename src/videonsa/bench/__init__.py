"""Measuring the attention ops: time, memory and correctness, beside other implementations."""
