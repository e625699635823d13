"""Linear products of a few rows, bound by reading the weights: one launch for weights of one input.

By kernels on an NVIDIA GPU (`takes`), else by PyTorch. Both sum in float32 and round at the same
places, so they differ by the order of summation only.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.triton.support import why_not_few_rows

MAX_ROWS = 16
"""That the kernels take: beyond, PyTorch's products are as fast."""
MAX_WEIGHTS = 3
"""Of one launch."""

Weight: TypeAlias = tuple[Tensor, Tensor | None]
"""`[N, K]` and a bias `[N]`."""


def takes(x: Tensor, weights: Sequence[Weight]) -> bool:
    """Whether the kernels multiply rows `[..., K]` by these weights.

    At most 16 rows and three weights, in bfloat16 or float16 on an NVIDIA GPU, no gradient.
    """
    if x.numel() > MAX_ROWS * x.shape[-1] or len(weights) > MAX_WEIGHTS:
        return False
    if why_not_few_rows(x) is not None:
        return False
    tensors = [y for weight in weights for y in weight if y is not None]
    if torch.is_grad_enabled() and any(y.requires_grad for y in (x, *tensors)):
        return False
    return all(
        y.dtype == x.dtype and y.device == x.device and y.is_contiguous() for y in tensors
    ) and all(w.shape[-1] == x.shape[-1] for w, _ in weights)


def linear_products(x: Tensor, weights: Sequence[Weight]) -> tuple[Tensor, ...]:
    """Rows `[..., K]` through several weights: `[..., N]` of each, in the dtype of x."""
    if not takes(x, weights):
        return tuple(F.linear(x, *weight) for weight in weights)
    from videonsa.ops.triton.few_rows import products_triton  # needs Triton

    outs = products_triton(x.reshape(-1, x.shape[-1]), weights)
    return tuple(out.view(*x.shape[:-1], -1) for out in outs)


def gated_product(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(x gate^T) * (x up^T) of rows `[..., K]` and two weights `[N, K]`: `[..., N]`."""
    if not takes(x, [(gate, None), (up, None)]):
        return F.silu(F.linear(x, gate)) * F.linear(x, up)
    from videonsa.ops.triton.few_rows import gated_triton  # needs Triton

    out = gated_triton(x.reshape(-1, x.shape[-1]), gate, up)
    return out.view(*x.shape[:-1], -1)
