"""Sparse attention: tensors in, tensors out. Knows neither video nor models."""

from videonsa.ops.layout import HybridLayout, hybrid_layout
from videonsa.ops.nsa import hybrid_attention, nsa_attention
from videonsa.ops.spec import NSAResult, NSASpec

__all__ = [
    "HybridLayout",
    "NSAResult",
    "NSASpec",
    "hybrid_attention",
    "hybrid_layout",
    "nsa_attention",
]
