"""Gradients of the compressed keys and values: every tile of blocks meets the rows that see it.

The rows are split in a fixed number of parts, whose sums `grad_sum` adds in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    clean_steps,
    fits_tma,
    key_source,
    load_keys,
    load_rows,
    load_terms,
    store_rows,
)
from videonsa.ops.triton.grad_keys import key_step
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.tuning import Config


@triton.jit
def _compressed_gradient_kernel(
    q,  # [R, HQ, D]
    k_cmp,  # [C, H, D]
    v_cmp,  # [C, H, D]
    grad,  # [R, HQ, D]
    queries,  # q, as a pointer
    grads,  # grad, likewise
    poisoned,  # [1]
    terms,  # [3, 3, R, HQ]
    sums,  # [SPLITS, 2, C, H, D] float32
    borders,  # [C / BLOCK_N, 4] rows where a tile of blocks begins to be seen, by all, ends to be
    row_begin,  # [R]
    row_end,  # [R]
    num_blocks,
    num_rows,
    num_lines,
    stride_qr,
    stride_qh,
    scale_log2,
    HQ,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    TMA: tl.constexpr,
):
    i_n, i_h, i_split = tl.program_id(0) // H, tl.program_id(0) % H, tl.program_id(1)
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_c = i_n * BLOCK_N + o_n
    m_c = o_c < num_blocks
    o_block = (o_c * H + i_h)[:, None] * D + o_d[None, :]
    b_k = load_rows(k_cmp + o_block, m_c, o_d, D, BLOCK_D)
    b_v = load_rows(v_cmp + o_block, m_c, o_d, D, BLOCK_D)
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
        b_q = load_keys(q, first, i_hq, stride_qr, stride_qh, o_m, m_row, o_d, D, BLOCK_D, TMA)
        b_do = load_keys(grad, first, i_hq, HQ * D, D, o_m, m_row, o_d, D, BLOCK_D, TMA)
        o_line = (first.to(tl.int64) + o_m) * HQ + i_hq
        b_lse, b_delta, b_gate = load_terms(terms, o_line, m_row, num_lines, 0)
        b_dk, b_dv = key_step(
            b_k,
            b_v,
            b_dk,
            b_dv,
            b_q,
            b_do,
            b_lse,
            b_delta,
            b_gate,
            m_c[None, :],
            scale_log2,
            False,
            False,
        )
    num_front = tl.cdiv(row_1 - row_0, BLOCK_M)
    num_border = (num_front + tl.cdiv(row_3 - row_2, BLOCK_M)) * G
    num_clean = clean_steps(poisoned, num_border)
    for i in range(num_clean):
        i_m, i_hq = i // G, i_h * G + i % G
        first = tl.where(i_m < num_front, row_0, row_2 - num_front * BLOCK_M) + i_m * BLOCK_M
        m_row = first + o_m < tl.where(i_m < num_front, row_1, row_3)
        b_low = tl.load(row_begin + first + o_m, mask=m_row, other=0)
        b_high = tl.load(row_end + first + o_m, mask=m_row, other=0)
        m_s = (o_c[None, :] >= b_low[:, None]) & (o_c[None, :] < b_high[:, None])
        b_q = load_keys(q, first, i_hq, stride_qr, stride_qh, o_m, m_row, o_d, D, BLOCK_D, TMA)
        b_do = load_keys(grad, first, i_hq, HQ * D, D, o_m, m_row, o_d, D, BLOCK_D, TMA)
        o_line = (first.to(tl.int64) + o_m) * HQ + i_hq
        b_lse, b_delta, b_gate = load_terms(terms, o_line, m_row, num_lines, 0)
        b_dk, b_dv = key_step(
            b_k, b_v, b_dk, b_dv, b_q, b_do, b_lse, b_delta, b_gate, m_s, scale_log2, True, False
        )
    for i in tl.range(num_clean, num_border, num_stages=1):
        i_m, i_hq = i // G, i_h * G + i % G
        first = tl.where(i_m < num_front, row_0, row_2 - num_front * BLOCK_M) + i_m * BLOCK_M
        m_row = first + o_m < tl.where(i_m < num_front, row_1, row_3)
        b_low = tl.load(row_begin + first + o_m, mask=m_row, other=0)
        b_high = tl.load(row_end + first + o_m, mask=m_row, other=0)
        m_s = (o_c[None, :] >= b_low[:, None]) & (o_c[None, :] < b_high[:, None])
        o_row = first.to(tl.int64) + o_m
        o_line = o_row * HQ + i_hq
        b_lse, b_delta, b_gate = load_terms(terms, o_line, m_row, num_lines, 0)
        m_row = m_row & (b_lse == b_lse)
        p_q = queries + i_hq * stride_qh + o_row[:, None] * stride_qr + o_d[None, :]
        b_q = load_rows(p_q, m_row, o_d, D, BLOCK_D)
        b_do = load_rows(grads + o_line[:, None] * D + o_d[None, :], m_row, o_d, D, BLOCK_D)
        b_dk, b_dv = key_step(
            b_k, b_v, b_dk, b_dv, b_q, b_do, b_lse, b_delta, b_gate, m_s, scale_log2, True, True
        )
    p_sum = sums + i_split.to(tl.int64) * 2 * num_blocks * H * D + o_block
    store_rows(p_sum, tl.trans(b_dk), m_c, o_d, D, BLOCK_D)
    store_rows(p_sum + num_blocks * H * D, tl.trans(b_dv), m_c, o_d, D, BLOCK_D)


def compressed_gradients(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    grad: Tensor,
    terms: Tensor,
    poisoned: Tensor,
    index: StreamIndex,
    *,
    splits: int,
    config: Config,
) -> Tensor:
    """Sums over the rows that see a block, split by split: `[splits, 2, C, H, D]` float32."""
    num_rows, num_heads, dim = q.shape
    num_blocks, num_kv_heads, _ = k_cmp.shape
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
    tma = config.tma and fits_tma(q) and fits_tma(grad)
    _compressed_gradient_kernel[(len(first) * num_kv_heads, splits)](
        key_source(q, config.block_m, tma=tma),
        k_cmp,
        v_cmp,
        key_source(grad, config.block_m, tma=tma),
        q,
        grad,
        poisoned,
        terms,
        sums,
        borders,
        index.row_begin,
        index.row_end,
        num_blocks,
        num_rows,
        num_rows * num_heads,
        *q.stride()[:2],
        dim**-0.5 * LOG2_E,
        num_heads,
        num_kv_heads,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        SPLITS=splits,
        TMA=tma,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.maxnreg,
    )
    return sums
