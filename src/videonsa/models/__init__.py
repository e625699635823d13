"""Qwen2.5-VL with Native Sparse Attention."""
