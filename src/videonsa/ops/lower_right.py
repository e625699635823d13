"""Says that a score is causal from its lower right corner, for PyTorch's fused attention."""

from typing import Self

import torch
from torch.nn.attention.bias import CausalBias, CausalVariant


class LowerRightBias(CausalBias):
    """The last T rows are causal among S keys: `causal_lower_right(T, S)` without its memory.

    PyTorch's function hands T and S on to the tensor's constructor too, which allocates
    2 * T * S float32 that nobody reads.
    """

    def __new__(cls, num_rows: int, num_keys: int) -> Self:
        """A tensor without entries."""
        return torch.empty(0).as_subclass(cls)

    def __init__(self, num_rows: int, num_keys: int) -> None:
        super().__init__(CausalVariant.LOWER_RIGHT, num_rows, num_keys)
