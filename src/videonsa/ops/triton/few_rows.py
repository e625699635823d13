"""Products of a few rows: each weight streams from memory once, and nothing else takes time.

A program takes some rows of a weight, which are outputs, over the whole inner dimension: nothing is
summed across programs, so a result does not depend on which ran first. One row is multiplied in
registers; several are the narrow side of tensor-core products whose long side are the outputs.
Letters: M rows of input, K inner dimension, N outputs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from videonsa.ops.scaled import ScaledRows
from videonsa.ops.triton.common import on_device
from videonsa.ops.triton.decode_tuning import ProductConfig, major_capability, product_tuning


class _Tile(NamedTuple):
    """What a kernel knows when it is compiled."""

    is_whole: bool
    """Tiles end where the weights end."""
    block_m: int
    block_n: int
    block_k: int
    num_stages: int


@triton.jit
def _weights_of(w, tma, first, i_k, o_n, o_k, K, num_out, IS_WHOLE: tl.constexpr):
    """[BLOCK_N, BLOCK_K] of w [N, K] from (first, i_k) on."""
    if tma is not None:
        b_w = tma.load([first, i_k])
    else:
        p_w = w + (first + o_n).to(tl.int64)[:, None] * K + i_k + o_k[None, :]
        if IS_WHOLE:
            b_w = tl.load(p_w, eviction_policy="evict_first")
        else:
            m_w = (first + o_n < num_out)[:, None] & (i_k + o_k < K)[None, :]
            b_w = tl.load(p_w, mask=m_w, other=0.0, eviction_policy="evict_first")
    return b_w


@triton.jit
def _rows_of(x, i_k, o_m, o_k, num_rows, K, IS_WHOLE: tl.constexpr):
    """[BLOCK_M, BLOCK_K] of x [M, K]; a single row is read as [1, BLOCK_K]."""
    p_x = x + o_m[:, None] * K + i_k + o_k[None, :]
    if IS_WHOLE and o_m.shape[0] == 1:
        b_x = tl.load(p_x)
    else:
        b_x = tl.load(p_x, mask=(o_m < num_rows)[:, None] & (i_k + o_k < K)[None, :], other=0.0)
    return b_x


@triton.jit
def _more(b_acc, b_w, b_x):
    """Add a step of the products: b_acc [N, M], or [N, K] of one row, to be summed at the end."""
    if b_x.shape[0] == 1:
        b_acc += b_w.to(tl.float32) * b_x.to(tl.float32)
    else:
        b_acc = tl.dot(b_w.to(b_x.dtype), tl.trans(b_x), b_acc, input_precision="ieee")
    return b_acc


@triton.jit
def _begun(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    return tl.zeros([BLOCK_N, BLOCK_K if BLOCK_M == 1 else BLOCK_M], tl.float32)


@triton.jit
def _ended(b_acc, scales, first, o_n, num_out, BLOCK_M: tl.constexpr):
    """[N, M] float32, times the scales [N] of a weight in float8."""
    if BLOCK_M == 1:
        b_acc = tl.sum(b_acc, 1)[:, None]
    if scales is not None:
        b_acc *= tl.load(scales + first + o_n, mask=first + o_n < num_out, other=0.0)[:, None]
    return b_acc


@triton.jit
def _store(out, b_out, first, o_m, o_n, num_rows, num_out):
    """b_out [N, M] in out [M, N]."""
    m_out = (first + o_n < num_out)[:, None] & (o_m < num_rows)[None, :]
    p_out = out + o_m[None, :] * num_out + first + o_n[:, None]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def _one_product(
    x,
    weight,
    scales,
    bias,
    tma,
    i_tile,
    num_rows,
    K,
    TILE: tl.constexpr,
):
    """The tile of outputs of one weight: w [N, K], out [M, N], N."""
    IS_WHOLE: tl.constexpr = TILE.is_whole
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    BLOCK_K: tl.constexpr = TILE.block_k
    w, out, num_out = weight
    first = i_tile * BLOCK_N
    o_m, o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    b_acc = _begun(BLOCK_M, BLOCK_N, BLOCK_K)
    for i_k in tl.range(0, K, BLOCK_K, num_stages=TILE.num_stages):
        b_x = _rows_of(x, i_k, o_m, o_k, num_rows, K, IS_WHOLE)
        b_w = _weights_of(w, tma, first, i_k, o_n, o_k, K, num_out, IS_WHOLE)
        b_acc = _more(b_acc, b_w, b_x)
    b_out = _ended(b_acc, scales, first, o_n, num_out, BLOCK_M)
    if bias is not None:
        b_bias = tl.load(bias + first + o_n, mask=first + o_n < num_out, other=0.0)
        b_out += b_bias.to(tl.float32)[:, None]
    _store(out, b_out, first, o_m, o_n, num_rows, num_out)


@triton.jit(do_not_specialize=["num_rows"])
def _products_kernel(
    x,  # [M, K]
    weight_1,  # of `_one_product`; not with what may be None: a tuple in a branch may hold none
    scales_1,  # [N] of a w in float8, or None
    bias_1,  # [N], or None
    tma_1,  # descriptor of its w, or None
    weight_2,  # or None, as the third
    scales_2,
    bias_2,
    tma_2,
    weight_3,
    scales_3,
    bias_3,
    tma_3,
    num_rows,
    K,
    TILE: tl.constexpr,
):
    i_1 = tl.program_id(0)
    BLOCK_N: tl.constexpr = TILE.block_n
    num_1 = tl.cdiv(weight_1[2], BLOCK_N)
    if i_1 < num_1:
        _one_product(x, weight_1, scales_1, bias_1, tma_1, i_1, num_rows, K, TILE)
    if weight_2 is not None:
        i_2 = i_1 - num_1
        num_2 = tl.cdiv(weight_2[2], BLOCK_N)
        if (i_2 >= 0) & (i_2 < num_2):
            _one_product(x, weight_2, scales_2, bias_2, tma_2, i_2, num_rows, K, TILE)
        if weight_3 is not None:  # noqa: SIM102 (known when it is compiled, the next is not)
            if i_2 >= num_2:
                _one_product(x, weight_3, scales_3, bias_3, tma_3, i_2 - num_2, num_rows, K, TILE)


@triton.jit(do_not_specialize=["num_rows"])
def _gated_kernel(
    x,  # [M, K]
    gate,  # [N, K]
    gate_scales,  # [N], or None
    gate_tma,  # descriptor, or None
    up,  # [N, K]
    up_scales,
    up_tma,
    out,  # [M, N]
    num_rows,
    K,
    num_out,
    TILE: tl.constexpr,
):
    IS_WHOLE: tl.constexpr = TILE.is_whole
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    BLOCK_K: tl.constexpr = TILE.block_k
    first = tl.program_id(0) * BLOCK_N
    o_m, o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    b_gate = _begun(BLOCK_M, BLOCK_N, BLOCK_K)
    b_up = _begun(BLOCK_M, BLOCK_N, BLOCK_K)
    for i_k in tl.range(0, K, BLOCK_K, num_stages=TILE.num_stages):
        b_x = _rows_of(x, i_k, o_m, o_k, num_rows, K, IS_WHOLE)
        b_w = _weights_of(gate, gate_tma, first, i_k, o_n, o_k, K, num_out, IS_WHOLE)
        b_gate = _more(b_gate, b_w, b_x)
        b_w = _weights_of(up, up_tma, first, i_k, o_n, o_k, K, num_out, IS_WHOLE)
        b_up = _more(b_up, b_w, b_x)
    # Rounded where separate products and silu round.
    b_gate = _ended(b_gate, gate_scales, first, o_n, num_out, BLOCK_M)
    b_up = _ended(b_up, up_scales, first, o_n, num_out, BLOCK_M)
    b_g = b_gate.to(out.dtype.element_ty).to(tl.float32)
    b_u = b_up.to(out.dtype.element_ty).to(tl.float32)
    b_s = (b_g * tl.sigmoid(b_g)).to(out.dtype.element_ty).to(tl.float32)
    _store(out, b_s * b_u, first, o_m, o_n, num_rows, num_out)


Matrix: TypeAlias = Tensor | ScaledRows
"""w `[N, K]`, contiguous; in float8 each row has a scale."""
Weight: TypeAlias = tuple[Matrix, Tensor | None]
"""A matrix and a bias `[N]`."""


def products_triton(
    x: Tensor, weights: Sequence[Weight], *, config: ProductConfig | None = None
) -> list[Tensor]:
    """Rows `[M, K]` through one to three weights: `[M, N]` of each.

    Args:
        x: M at most 16, contiguous.
        weights: of the dtype of x or in float8, summed in float32 and rounded once.
        config: of the launch. Default: as measured for the device.
    """
    num_rows, size = x.shape
    matrices = [_split(w) for w, _ in weights]
    num_out = sum(len(w) for w, _ in matrices)
    config = config or _config(x, matrices[0][0], num_out)
    outs = [x.new_empty((num_rows, len(w))) for w, _ in matrices]
    given: list[Any] = []
    for (w, scales), (_, bias), out in zip(matrices, weights, outs, strict=True):
        given += [(w, out, len(w)), scales, bias, _descriptor(w, config)]
    given += [None] * (12 - len(given))
    tiles = sum(triton.cdiv(len(w), config.block_n) for w, _ in matrices)
    with on_device(x):
        _products_kernel[(tiles,)](
            x, *given, num_rows, size, **_constants(x, [w for w, _ in matrices], config)
        )
    return outs


def gated_triton(
    x: Tensor, gate: Matrix, up: Matrix, *, config: ProductConfig | None = None
) -> Tensor:
    """silu(x gate^T) * (x up^T) of rows `[M, K]` and two weights `[N, K]`: `[M, N]`."""
    num_rows, size = x.shape
    (w_gate, gate_scales), (w_up, up_scales) = _split(gate), _split(up)
    num_out = len(w_gate)
    config = config or _config(x, w_gate, 2 * num_out)
    out = x.new_empty((num_rows, num_out))
    with on_device(x):
        _gated_kernel[(triton.cdiv(num_out, config.block_n),)](
            x,
            w_gate,
            gate_scales,
            _descriptor(w_gate, config),
            w_up,
            up_scales,
            _descriptor(w_up, config),
            out,
            num_rows,
            size,
            num_out,
            **_constants(x, [w_gate, w_up], config),
        )
    return out


def _split(weight: Matrix) -> tuple[Tensor, Tensor | None]:
    """Its values, and its scales where they are in float8."""
    return weight if isinstance(weight, ScaledRows) else (weight, None)


def _config(x: Tensor, w: Tensor, num_out: int) -> ProductConfig:
    capability = major_capability(x.device)
    return product_tuning(
        len(x), num_out, w.shape[1], element_size=w.element_size(), capability=capability
    )


def _constants(x: Tensor, weights: Sequence[Tensor], config: ProductConfig) -> dict[str, Any]:
    whole = all(len(w) % config.block_n == 0 for w in weights) and not x.shape[1] % config.block_k
    blocks = config.block_m, config.block_n, config.block_k
    tile = _Tile(whole, *blocks, config.num_stages)
    return {"TILE": tile, "num_warps": config.num_warps}


def _descriptor(w: Tensor, config: ProductConfig) -> TensorDescriptor | None:
    aligned = w.shape[1] * w.element_size() % 16 == 0 and w.data_ptr() % 16 == 0
    if not config.tma or not aligned:
        return None
    return TensorDescriptor(w, list(w.shape), list(w.stride()), [config.block_n, config.block_k])
