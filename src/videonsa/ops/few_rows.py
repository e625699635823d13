"""Linear products of a few rows, bound by reading the weights: one launch for weights of one input.

By kernels on an NVIDIA GPU (`takes`), else by PyTorch. Both sum in float32 and round at the same
places, so they differ by the order of summation only.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.scaled import ScaledRows, can_multiply
from videonsa.ops.triton.support import why_not_few_rows

MAX_ROWS = 16
"""That the kernels take: beyond, PyTorch's products are as fast."""
MAX_WEIGHTS = 3
"""Of one launch."""

Matrix: TypeAlias = Tensor | ScaledRows
"""`[N, K]`, in the dtype of the input or in float8."""
Weight: TypeAlias = tuple[Matrix, Tensor | None]
"""A matrix and a bias `[N]`."""


def takes(x: Tensor, weights: Sequence[Weight]) -> bool:
    """Whether the kernels multiply rows `[..., K]` by these weights.

    At most 16 rows and three weights, in bfloat16 or float16 on an NVIDIA GPU, no gradient.
    """
    if x.numel() > MAX_ROWS * x.shape[-1] or len(weights) > MAX_WEIGHTS:
        return False
    if why_not_few_rows(x) is not None:
        return False
    scaled = [w for w, _ in weights if isinstance(w, ScaledRows)]
    if scaled and not can_multiply(x.device):
        return False
    like_x = [y for weight in weights for y in weight if isinstance(y, Tensor)]
    tensors = [*like_x, *(y for w in scaled for y in w)]
    if torch.is_grad_enabled() and any(y.requires_grad for y in (x, *tensors)):
        return False
    return (
        all(y.dtype == x.dtype for y in like_x)
        and all(y.device == x.device and y.is_contiguous() for y in tensors)
        and all(values_of(w).shape[-1] == x.shape[-1] for w, _ in weights)
    )


def values_of(weight: Matrix) -> Tensor:
    """`[N, K]`, not yet scaled."""
    return weight.values if isinstance(weight, ScaledRows) else weight


def linear_products(x: Tensor, weights: Sequence[Weight]) -> tuple[Tensor, ...]:
    """Rows `[..., K]` through several weights: `[..., N]` of each, in the dtype of x."""
    if not takes(x, weights):
        return tuple(F.linear(x, _restored(w, x), bias) for w, bias in weights)
    from videonsa.ops.triton.few_rows import products_triton  # needs Triton

    outs = products_triton(x.reshape(-1, x.shape[-1]), weights)
    return tuple(out.view(*x.shape[:-1], -1) for out in outs)


def gated_product(x: Tensor, gate: Matrix, up: Matrix) -> Tensor:
    """silu(x gate^T) * (x up^T) of rows `[..., K]` and two weights `[N, K]`: `[..., N]`."""
    if not takes(x, [(gate, None), (up, None)]):
        return F.silu(F.linear(x, _restored(gate, x))) * F.linear(x, _restored(up, x))
    from videonsa.ops.triton.few_rows import gated_triton  # needs Triton

    out = gated_triton(x.reshape(-1, x.shape[-1]), gate, up)
    return out.view(*x.shape[:-1], -1)


def _restored(weight: Matrix, x: Tensor) -> Tensor:
    if isinstance(weight, ScaledRows):
        return (weight.values.float() * weight.scales).to(x.dtype)
    return weight
