"""Means of the complete blocks: k_c and v_c of the compressed branch (NSA eq. 7 with a mean)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import load_rows, store_rows
from videonsa.ops.triton.index import StreamIndex


@triton.jit
def _halves_sum(b_x, N: tl.constexpr, BLOCK_D: tl.constexpr):
    """[N, D] -> [1, D]: first half plus second half, and again: the tree of the reference."""
    if N > 1:
        b_sum = _halves_sum(tl.sum(tl.reshape(b_x, [2, N // 2, BLOCK_D]), 0), N // 2, BLOCK_D)
    else:
        b_sum = b_x
    return b_sum


@triton.jit
def _pool_kernel(
    k,  # [S, H, D]
    v,  # [S, H, D]
    k_cmp,  # [C, H, D]
    v_cmp,  # [C, H, D]
    block_start,  # [C]
    block_size,  # [C]
    num_keys,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    H,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i_c, i_h = tl.program_id(0), tl.program_id(1)
    start, size = tl.load(block_start + i_c), tl.load(block_size + i_c)
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    # Nobody sees a block that is not complete; it becomes 0.
    m_n = (o_n < size) & (start < num_keys) & (size <= num_keys - start)
    o_key = (start + o_n).to(tl.int64)[:, None]
    b_k = load_rows(k + o_key * stride_ks + i_h * stride_kh + o_d[None, :], m_n, o_d, D, BLOCK_D)
    b_v = load_rows(v + o_key * stride_vs + i_h * stride_vh + o_d[None, :], m_n, o_d, D, BLOCK_D)
    count = tl.maximum(size, 1).to(tl.float32)[None, None]
    o_out = (i_c.to(tl.int64) * H + i_h) * D + o_d[None, :]
    m_one = tl.full([1], 1, tl.int1)
    b_k = _halves_sum(b_k.to(tl.float32), BLOCK_N, BLOCK_D)
    b_v = _halves_sum(b_v.to(tl.float32), BLOCK_N, BLOCK_D)
    store_rows(k_cmp + o_out, tl.math.div_rn(b_k, count), m_one, o_d, D, BLOCK_D)
    store_rows(v_cmp + o_out, tl.math.div_rn(b_v, count), m_one, o_d, D, BLOCK_D)


def pool(k: Tensor, v: Tensor, index: StreamIndex) -> tuple[Tensor, Tensor]:
    """Keys and values `[S, H, D]` -> means of the blocks `[C, H, D]`, summed in float32."""
    num_keys, num_kv_heads, dim = k.shape
    num_blocks = index.block_start.shape[0]
    k_cmp = torch.empty((num_blocks, num_kv_heads, dim), dtype=k.dtype, device=k.device)
    v_cmp = torch.empty_like(k_cmp)
    _pool_kernel[(num_blocks, num_kv_heads)](
        k,
        v,
        k_cmp,
        v_cmp,
        index.block_start,
        index.block_size,
        num_keys,
        *k.stride()[:2],
        *v.stride()[:2],
        num_kv_heads,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_N=triton.next_power_of_2(index.max_size),
        num_warps=4,
    )
    return k_cmp, v_cmp
