"""Rows scaled to the range of float8 and rounded, in one pass over memory.

A program reads a whole row, finds its largest magnitude, and writes it scaled: nothing is read
twice. Letters: R rows of K values.
"""

import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import on_device

VALUES = 8
"""That a thread loads at a time: 16 bytes in bfloat16."""
MOST_TILES = 8
"""Of a row; more would need more registers than two or more programs of a multiprocessor have."""


@triton.jit
def _silu(b_x):
    return b_x / (1.0 + tl.exp(-b_x))


@triton.jit
def _scale_kernel(
    x,  # [R, K]
    up,  # [R, K], or None: rows are x, not silu(x) * up
    values,  # [R, K]
    scales,  # [R]
    stride_x,
    stride_up,
    K,
    largest: tl.constexpr,
    smallest: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_tile = tl.arange(0, TILE)
    b_max = tl.zeros([TILE], tl.float32)
    tiles = ()
    for i in tl.static_range(TILES):
        o_k = i * TILE + o_tile
        b_x = tl.load(x + i_row * stride_x + o_k, mask=o_k < K, other=0.0).to(tl.float32)
        if up is not None:
            b_up = tl.load(up + i_row * stride_up + o_k, mask=o_k < K, other=0.0)
            b_x = _silu(b_x) * b_up.to(tl.float32)
        b_max = tl.maximum(b_max, tl.abs(b_x))  # leaves NaN out
        tiles = tiles + (b_x,)  # type: ignore[assignment] # noqa: RUF005
    row_max = tl.maximum(tl.max(b_max, 0), smallest)
    inverse = tl.math.div_rn(largest, row_max)
    for i in tl.static_range(TILES):
        o_k = i * TILE + o_tile
        b_x = (tiles[i] * inverse).to(values.dtype.element_ty)
        tl.store(values + i_row * K + o_k, b_x, mask=o_k < K)
    tl.store(scales + i_row, row_max * (1.0 / largest))


def scale_into(
    x: Tensor, up: Tensor | None, values: Tensor, scales: Tensor, *, largest: float, smallest: float
) -> None:
    """Write rows, and what they are to be multiplied by.

    Args:
        x: `[R, K]`, R > 0, values of a row side by side.
        up: likewise: the rows are silu(x) * up; None: they are x.
        values: `[R, K]` contiguous: rows over their scales, rounded to its dtype.
        scales: float32 `[R]`: the largest magnitude of each row over `largest`.
        largest: of `values`.
        smallest: magnitude that is taken for the largest of a row where that is smaller.
    """
    num_rows, width = x.shape
    num_warps = triton.next_power_of_2(triton.cdiv(width, 32 * VALUES * MOST_TILES))
    tile = 32 * VALUES * num_warps
    with on_device(x):
        _scale_kernel[(num_rows,)](
            x,
            up,
            values,
            scales,
            x.stride(0),
            0 if up is None else up.stride(0),
            width,
            largest=largest,
            smallest=smallest,
            TILE=tile,
            TILES=triton.cdiv(width, tile),
            num_warps=num_warps,
        )
