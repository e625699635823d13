"""The attention methods: dense, NSA, and each baseline in a file of its own."""

from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import NSA, ReleasedNSA, nsa_method
from videonsa.models.methods.protocol import DENSE, SPARSE, Attended, AttentionMethod
from videonsa.models.methods.registry import METHODS, named_method, parse_method

__all__ = [
    "DENSE",
    "METHODS",
    "NSA",
    "SPARSE",
    "Attended",
    "AttentionMethod",
    "Dense",
    "ReleasedNSA",
    "named_method",
    "nsa_method",
    "parse_method",
]
