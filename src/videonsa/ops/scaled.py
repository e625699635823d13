"""Products of rows in float8 (e4m3), each with a scale of its own.

A row is divided by its scale, its largest magnitude over the largest of float8, and rounded to
four significant bits. The product of two such rows is summed in float32 and multiplied by both
scales.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.triton.support import INSTALLED

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
"""448."""
SMALLEST = 2.0**-100
"""Largest magnitude of a row whose scale, and its inverse, are still normal numbers of float32."""
LEAST_ROWS = 128
"""Zeros are added to fewer: cuBLAS lacks some products of few rows with a bias."""
MULTIPLE = 16
"""Both sides of a weight are multiples of it: what the GPU's product takes."""
LEAST_CAPABILITY = (8, 9)
"""Of a GPU that multiplies float8."""


def can_multiply(device: torch.device) -> bool:
    """Whether a device is a GPU that multiplies float8."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


class ScaledRows(NamedTuple):
    """Rows of float8 and their scales."""

    values: Tensor  # float8 [..., K]
    scales: Tensor  # float32 [..., 1]


def scale_rows(x: Tensor) -> ScaledRows:
    """Rows `[..., K]` of any floating dtype in float8; one with NaN or infinity becomes NaN there.

    By a kernel on an NVIDIA GPU, else by PyTorch.
    """
    return _scaled(x, None)


def scale_gated_rows(gate: Tensor, up: Tensor) -> ScaledRows:
    """The rows silu(gate) * up of `[..., K]` each, computed in float32, in float8."""
    return _scaled(gate, up)


def scaled_product(rows: ScaledRows, weight: ScaledRows, bias: Tensor | None = None) -> Tensor:
    """Rows times the transposed weight, plus a bias: `[..., N]` in bfloat16.

    Args:
        rows: `[..., K]`.
        weight: `[N, K]`; N and K are multiples of `MULTIPLE`.
        bias: `[N]`, added in float32.
    """
    num_out, width = weight.values.shape
    shape = (*rows.values.shape[:-1], num_out)
    if not rows.values.numel():
        return rows.scales.new_empty(shape, dtype=torch.bfloat16)
    values, scales = rows.values.reshape(-1, width), rows.scales.reshape(-1, 1)
    num_rows = len(values)
    if values.is_cuda and num_rows < LEAST_ROWS:
        values, scales = _with_zeros(values), _with_zeros(scales)
    product: Tensor = torch._scaled_mm(
        values,
        weight.values.t(),
        scale_a=scales,
        scale_b=weight.scales.t(),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=values.is_cuda,
    )
    return product[:num_rows].view(shape)


def _with_zeros(x: Tensor) -> Tensor:
    """Rows `[R, ...]` with others of zeros behind them, `LEAST_ROWS` in all."""
    padded = torch.empty(LEAST_ROWS, *x.shape[1:], dtype=x.dtype, device=x.device)
    padded.view(torch.uint8).zero_()
    padded[: len(x)] = x
    return padded


def _scaled(x: Tensor, up: Tensor | None) -> ScaledRows:
    if not (x.is_cuda and INSTALLED and x.numel()):
        return _scaled_by_pytorch(x if up is None else F.silu(x.float()) * up.float())
    from videonsa.ops.triton.scaled_rows import scale_into  # needs Triton

    width = x.shape[-1]
    values = torch.empty(x.shape, dtype=FLOAT8, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    scale_into(
        x.reshape(-1, width),
        None if up is None else up.reshape(-1, width),
        values,
        scales,
        largest=LARGEST,
        smallest=SMALLEST,
    )
    return ScaledRows(values, scales)


def _scaled_by_pytorch(x: Tensor) -> ScaledRows:
    rows = x.float()
    magnitudes = rows.abs().nan_to_num(nan=0.0, posinf=torch.inf)
    largest = magnitudes.amax(-1, keepdim=True).clamp(min=SMALLEST)
    # Divided: PyTorch would multiply a number by the reciprocal of a tensor, rounded twice.
    inverse = torch.full_like(largest, LARGEST) / largest
    return ScaledRows((rows * inverse).to(FLOAT8), largest * (1 / LARGEST))
