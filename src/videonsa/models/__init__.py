"""Qwen2.5-VL with Native Sparse Attention."""

from videonsa.models.registration import register

register()
