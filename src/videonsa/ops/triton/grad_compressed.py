"""Gradients of the compressed keys and values: every tile of blocks meets the rows that see it.

The rows are split in a fixed number of parts, whose sums `grad_sum` adds in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    Keys,
    clean_steps,
    descriptors,
    load_head,
    load_rows,
    store_rows,
)
from videonsa.ops.triton.grad_keys import key_step
from videonsa.ops.triton.grad_terms import Queries, QueryTile, load_terms
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.tuning import Tuning


@triton.jit
def _load_tile(
    q, upstream, q_tma, grad_tma, first, i_hq, o_m, m_row, D: tl.constexpr, POISONED: tl.constexpr
):
    """`QueryTile` of one head of the rows from `first` on."""
    p_q, stride_n, stride_h, HQ = q
    grad, o_d = upstream[0], tl.arange(0, triton.next_power_of_2(D))
    if POISONED:
        o_row = first.to(tl.int64) + o_m
        o_hq = o_row * HQ + i_hq
        terms = load_terms(upstream, o_hq, m_row, 0)
        m_row = m_row & (terms.lse == terms.lse)
        p_q = p_q + i_hq * stride_h + o_row[:, None] * stride_n + o_d[None, :]
        b_q = load_rows(p_q, m_row, o_d, D)
        b_do = load_rows(grad + o_hq[:, None] * D + o_d[None, :], m_row, o_d, D)
    else:
        b_q = load_head(q, q_tma, first, i_hq, o_m, m_row, o_d, D)
        grad = (grad, HQ * D, D, HQ)
        b_do = load_head(grad, grad_tma, first, i_hq, o_m, m_row, o_d, D)
        o_hq = (first.to(tl.int64) + o_m) * HQ + i_hq
        terms = load_terms(upstream, o_hq, m_row, 0)
    return QueryTile(b_q, b_do, terms)


@triton.jit
def _seen(rows, first, o_m, m_row, o_c):
    """Which blocks o_c [N] the rows first + o_m [M] see: [M, N]."""
    _, _, row_begin, row_end = rows
    b_low = tl.load(row_begin + first + o_m, mask=m_row, other=0)
    b_high = tl.load(row_end + first + o_m, mask=m_row, other=0)
    return (o_c[None, :] >= b_low[:, None]) & (o_c[None, :] < b_high[:, None])


@triton.jit
def _compressed_gradient_kernel(
    q,  # heads of [R, HQ, D]
    upstream,  # of `Queries`
    k_cmp,  # [C, H, D]
    v_cmp,  # [C, H, D]
    q_tma,  # descriptors of q and the gradient, or None
    grad_tma,
    sums,  # [SPLITS, 2, C, H, D] float32
    borders,  # [C / BLOCK_N, 4] rows where a tile of blocks begins to be seen, by all, ends to be
    rows,  # of `StreamIndex`
    num_blocks,
    num_rows,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    i_n, i_h, i_split = tl.program_id(0) // H, tl.program_id(0) % H, tl.program_id(1)
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_c = i_n * BLOCK_N + o_n
    m_c = o_c < num_blocks
    o_block = (o_c * H + i_h)[:, None] * D + o_d[None, :]
    b_k = load_rows(k_cmp + o_block, m_c, o_d, D)
    b_v = load_rows(v_cmp + o_block, m_c, o_d, D)
    b_dk = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    b_dv = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    low = tl.cdiv(num_rows, SPLITS) * i_split
    high = tl.minimum(low + tl.cdiv(num_rows, SPLITS), num_rows)
    row_0 = tl.minimum(tl.maximum(tl.load(borders + 4 * i_n), low), high)
    row_1 = tl.minimum(tl.maximum(tl.load(borders + 4 * i_n + 1), low), high)
    row_2 = tl.minimum(tl.maximum(tl.load(borders + 4 * i_n + 2), low), high)
    row_3 = tl.minimum(tl.maximum(tl.load(borders + 4 * i_n + 3), low), high)
    # In whole tiles of rows, as the last would reach on to rows that may not see the blocks.
    num_all = (row_2 - row_1) // BLOCK_M
    row_2 = row_1 + num_all * BLOCK_M
    for i in range(num_all * G):  # every row sees all blocks of the tile
        first, i_hq = row_1 + i // G * BLOCK_M, i_h * G + i % G
        m_row = first + o_m < row_2
        tile = _load_tile(q, upstream, q_tma, grad_tma, first, i_hq, o_m, m_row, D, POISONED=False)
        b_dk, b_dv = key_step(b_k, b_v, b_dk, b_dv, tile, m_c[None, :], MASK=False, POISONED=False)
    num_front = tl.cdiv(row_1 - row_0, BLOCK_M)
    num_border = (num_front + tl.cdiv(row_3 - row_2, BLOCK_M)) * G
    poisoned = upstream[3]
    num_clean = clean_steps(poisoned, num_border)
    for i in range(num_clean):
        i_m, i_hq = i // G, i_h * G + i % G
        first = tl.where(i_m < num_front, row_0, row_2 - num_front * BLOCK_M) + i_m * BLOCK_M
        m_row = first + o_m < tl.where(i_m < num_front, row_1, row_3)
        m_s = _seen(rows, first, o_m, m_row, o_c)
        tile = _load_tile(q, upstream, q_tma, grad_tma, first, i_hq, o_m, m_row, D, POISONED=False)
        b_dk, b_dv = key_step(b_k, b_v, b_dk, b_dv, tile, m_s, MASK=True, POISONED=False)
    for i in tl.range(num_clean, num_border, num_stages=1):
        i_m, i_hq = i // G, i_h * G + i % G
        first = tl.where(i_m < num_front, row_0, row_2 - num_front * BLOCK_M) + i_m * BLOCK_M
        m_row = first + o_m < tl.where(i_m < num_front, row_1, row_3)
        m_s = _seen(rows, first, o_m, m_row, o_c)
        tile = _load_tile(q, upstream, q_tma, grad_tma, first, i_hq, o_m, m_row, D, POISONED=True)
        b_dk, b_dv = key_step(b_k, b_v, b_dk, b_dv, tile, m_s, MASK=True, POISONED=True)
    p_sum = sums + i_split.to(tl.int64) * 2 * num_blocks * H * D + o_block
    store_rows(p_sum, tl.trans(b_dk), m_c, o_d, D)
    store_rows(p_sum + num_blocks * H * D, tl.trans(b_dv), m_c, o_d, D)


def compressed_gradients(
    queries: Queries, means: Keys, index: StreamIndex, *, tuning: Tuning
) -> Tensor:
    """Sums over the rows that see a block, split by split: `[splits, 2, C, H, D]` float32."""
    q, config, splits = queries.q, tuning.compressed_gradient, tuning.splits
    num_blocks, num_kv_heads, dim = means.k.shape
    first = torch.arange(0, num_blocks, config.block_n, dtype=torch.int32, device=q.device)
    last = (first + config.block_n).clamp(max=num_blocks) - 1

    def rows_until(bound: Tensor, value: Tensor) -> Tensor:
        return torch.searchsorted(bound, value, right=True, out_int32=True)

    # Of blocks [first, last]: rows see the first from, see the last from, begin behind the first
    # from, begin behind the last from. Between the second and the third every row sees all.
    some, every = rows_until(index.row_end, first), rows_until(index.row_end, last)
    fewer, none = rows_until(index.row_begin, first), rows_until(index.row_begin, last)
    borders = torch.stack([some, every, torch.maximum(every, fewer), none], dim=1)
    shape = (splits, 2, num_blocks, num_kv_heads, dim)
    sums = torch.empty(shape, dtype=torch.float32, device=q.device)
    sources = (q, config.block_m), (queries.grad, config.block_m)
    _compressed_gradient_kernel[(len(first) * num_kv_heads, splits)](
        *queries.arguments,
        means.k,
        means.v,
        *descriptors(*sources, tma=config.tma),
        sums,
        borders,
        index.rows,
        num_blocks,
        len(q),
        num_kv_heads,
        G=q.shape[1] // num_kv_heads,
        D=dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        SPLITS=splits,
        **config.launch,
    )
    return sums
