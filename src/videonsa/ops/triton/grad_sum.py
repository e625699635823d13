"""Gradients of keys and values put together: items of a block, and its part of the compressed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import load_rows, store_rows
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.inverse import Inverse


@triton.jit
def _sum_kernel(
    sums,  # [items, 2, BLOCK_S, D]
    sums_cmp,  # [SPLITS, 2, C, H, D] or None
    first_item,  # [lists + 1]
    grad_k,  # [S, H, D]
    grad_v,  # [S, H, D]
    blocks,  # of `StreamIndex`
    num_keys,
    scale,
    H,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    block_start, block_size, num_blocks = blocks
    i_c, i_h = tl.program_id(0), tl.program_id(1)
    is_v, part = tl.program_id(2) % 2, tl.program_id(2) // 2 * BLOCK_N
    start, size = tl.load(block_start + i_c), tl.load(block_size + i_c)
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_n += part
    # The last block of a sample may reach into the next: those keys are that sample's.
    stop = tl.load(block_start + i_c + 1, mask=i_c + 1 < num_blocks, other=num_keys)
    stop = tl.minimum(stop, num_keys)
    m_n = (o_n < size) & (o_n < stop - start)
    o_nd = o_n[:, None] * D + o_d[None, :]
    i_list = i_h * num_blocks + i_c
    b_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i_item in range(tl.load(first_item + i_list), tl.load(first_item + i_list + 1)):
        p_sum = sums + (i_item * 2 + is_v).to(tl.int64) * (BLOCK_S * D)
        b_sum += load_rows(p_sum + o_nd, m_n, o_d, D)
    if sums_cmp is not None:
        # The mean of a complete block: each of its tokens takes part of its gradient.
        b_mean = tl.zeros([1, BLOCK_D], tl.float32)
        m_one = tl.full([1], 1, tl.int1)
        for i_split in range(SPLITS):
            o_cmp = ((i_split * 2 + is_v) * num_blocks + i_c).to(tl.int64) * H + i_h
            b_mean += load_rows(sums_cmp + o_cmp * D + o_d[None, :], m_one, o_d, D)
        is_whole = (size > 0) & (start < num_keys) & (size <= num_keys - start)
        b_sum += tl.where(is_whole, b_mean / tl.maximum(size, 1).to(tl.float32), 0.0)
    grad_x = grad_k
    if is_v == 1:
        grad_x = grad_v
    else:
        b_sum *= scale
    p_x = grad_x + ((start + o_n).to(tl.int64)[:, None] * H + i_h) * D + o_d[None, :]
    store_rows(p_x, b_sum, m_n, o_d, D)


def sum_gradients(
    sums: Tensor, sums_cmp: Tensor | None, inverse: Inverse, index: StreamIndex, k: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values `[S, H, D]`, in the dtype of k.

    Args:
        sums: from `block_gradients`.
        sums_cmp: from `compressed_gradients`, None without a compressed branch.
        inverse: whose items the sums are.
        index: of the keys.
        k: `[S, H, D]`.
    """
    num_keys, num_kv_heads, dim = k.shape
    # Zeros: packed samples need not reach to the last key.
    grad_k = torch.zeros((num_keys, num_kv_heads, dim), dtype=k.dtype, device=k.device)
    grad_v = torch.zeros_like(grad_k)
    block_s = sums.shape[2]
    block_n = min(block_s, 64)
    _sum_kernel[(len(index.block_start), num_kv_heads, 2 * block_s // block_n)](
        sums,
        sums_cmp,
        inverse.first_item,
        grad_k,
        grad_v,
        index.blocks,
        num_keys,
        dim**-0.5,
        num_kv_heads,
        D=dim,
        BLOCK_N=block_n,
        BLOCK_S=block_s,
        SPLITS=0 if sums_cmp is None else len(sums_cmp),
        num_warps=4,
    )
    return grad_k, grad_v
