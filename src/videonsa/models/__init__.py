"""Qwen2.5-VL with Native Sparse Attention."""

from videonsa.models.checkpoints.registration import register

register()
