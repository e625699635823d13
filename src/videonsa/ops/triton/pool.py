"""Means of the complete blocks: k_c and v_c of the compressed branch (NSA eq. 7 with a mean)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    Keys,
    heads,
    is_any,
    launcher,
    load_finite_head,
    load_rows,
    poison_of,
    store_rows,
)
from videonsa.ops.triton.index import StreamIndex

POISON_ROWS = 64
"""Keys of heads that a program of `with_poison` looks at."""


@triton.jit
def _halves_sum(b_x, HALVINGS: tl.constexpr):
    """[N, D] -> [1, D]: first half plus second half, and again: the tree of the reference."""
    for _ in tl.static_range(HALVINGS):
        b_x = tl.sum(tl.reshape(b_x, [2, b_x.shape[0] // 2, b_x.shape[1]]), 0)
    return b_x


@triton.jit
def _store_mean(b_x, p_mean, size, is_whole, o_d, D: tl.constexpr, HALVINGS: tl.constexpr):
    """Stores the mean of a block [N, D]; the poison of its keys [N] and of the mean [1]."""
    b_x = b_x.to(tl.float32)
    b_poison = poison_of(b_x)
    count = tl.maximum(size, 1).to(tl.float32)[None, None]
    b_mean = tl.math.div_rn(_halves_sum(tl.where(is_whole, b_x, 0.0), HALVINGS), count)
    store_rows(p_mean, b_mean, tl.full([1], 1, tl.int1), o_d, D)
    return b_poison, poison_of(b_mean)


@triton.jit
def _poison_kernel(
    k,  # [S * H, D]
    v,  # [S * H, D]
    poison,  # [S * H]
    poisoned,  # [1]
    num_rows,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, triton.next_power_of_2(D))
    m_row = o_m < num_rows
    o_x = o_m[:, None] * D + o_d[None, :]
    b_k = load_rows(k + o_x, m_row, o_d, D).to(tl.float32)
    b_v = load_rows(v + o_x, m_row, o_d, D).to(tl.float32)
    b_poison = poison_of(b_k) + poison_of(b_v)
    tl.store(poison + o_m, b_poison, mask=m_row)
    tl.store(poisoned, 1, mask=is_any(b_poison != 0.0))


@triton.jit
def _pool_kernel(
    k,  # heads of [S, H, D]
    v,  # likewise
    k_cmp,  # [C, H, D]
    v_cmp,  # [C, H, D]
    poison,  # [S, H]
    poison_cmp,  # [C, H]
    poisoned,  # [1]
    blocks,  # of `StreamIndex`
    num_keys,
    D: tl.constexpr,
    HALVINGS: tl.constexpr,  # of a tile of keys that holds a block
):
    BLOCK_N: tl.constexpr = 2**HALVINGS
    H = k[3]
    block_start, block_size, num_blocks = blocks
    i_c, i_h = tl.program_id(0), tl.program_id(1)
    start, size = tl.load(block_start + i_c), tl.load(block_size + i_c)
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, triton.next_power_of_2(D))
    # The last block of a sample may reach into the next: those keys are that sample's.
    stop = tl.load(block_start + i_c + 1, mask=i_c + 1 < num_blocks, other=num_keys)
    stop = tl.minimum(stop, num_keys)
    m_n = (o_n < size) & (o_n < stop - start)
    # Nobody sees a block that is not complete; it becomes 0.
    is_whole = (start < stop) & (size <= stop - start)
    o_out = (i_c.to(tl.int64) * H + i_h) * D + o_d[None, :]
    b_k, _ = load_finite_head(k, None, start, i_h, o_n, m_n, o_d, D)
    b_poison, b_poison_cmp = _store_mean(b_k, k_cmp + o_out, size, is_whole, o_d, D, HALVINGS)
    b_v, _ = load_finite_head(v, None, start, i_h, o_n, m_n, o_d, D)
    b_of_v, b_of_v_cmp = _store_mean(b_v, v_cmp + o_out, size, is_whole, o_d, D, HALVINGS)
    b_poison, b_poison_cmp = b_poison + b_of_v, b_poison_cmp + b_of_v_cmp
    tl.store(poison + (start + o_n).to(tl.int64) * H + i_h, b_poison, mask=m_n)
    tl.store(poison_cmp + i_c * H + i_h + tl.zeros([1], tl.int32), b_poison_cmp)
    tl.store(poisoned, 1, mask=is_any(b_poison != 0.0) | is_any(b_poison_cmp != 0.0))


def pool(k: Tensor, v: Tensor, index: StreamIndex) -> tuple[Keys, Keys]:
    """Keys and values `[S, H, D]`, and the means of the blocks `[C, H, D]`, summed in float32."""
    num_keys, num_kv_heads, dim = k.shape
    num_blocks = index.block_start.shape[0]
    k_cmp = torch.empty((num_blocks, num_kv_heads, dim), dtype=k.dtype, device=k.device)
    v_cmp = torch.empty_like(k_cmp)
    poison = torch.empty((num_keys, num_kv_heads), dtype=torch.float32, device=k.device)
    poison_cmp = torch.empty((num_blocks, num_kv_heads), dtype=torch.float32, device=k.device)
    poisoned = torch.zeros(1, dtype=torch.int32, device=k.device)
    launcher(_pool_kernel, k)[(num_blocks, num_kv_heads)](
        heads(k),
        heads(v),
        k_cmp,
        v_cmp,
        poison,
        poison_cmp,
        poisoned,
        index.blocks,
        num_keys,
        D=dim,
        HALVINGS=(index.max_size - 1).bit_length(),
        num_warps=4,
    )
    return Keys(k, v, poison, poisoned), Keys(k_cmp, v_cmp, poison_cmp, poisoned)


def with_poison(k: Tensor, v: Tensor) -> Keys:
    """As `pool`, without means: k, v `[S, H, D]` contiguous."""
    dim, num_rows = k.shape[2], k.shape[0] * k.shape[1]
    poison = torch.empty(k.shape[:2], dtype=torch.float32, device=k.device)
    poisoned = torch.zeros(1, dtype=torch.int32, device=k.device)
    launcher(_poison_kernel, k)[(triton.cdiv(num_rows, POISON_ROWS),)](
        k, v, poison, poisoned, num_rows, D=dim, BLOCK_M=POISON_ROWS, num_warps=4
    )
    return Keys(k, v, poison, poisoned)
