"""The compressed branch: dense attention over the means of the blocks that a row sees."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    clean_steps,
    fits_tma,
    key_source,
    load_finite,
    load_keys,
    load_rows,
    scores,
    softmax_end,
    softmax_step,
    store_rows,
    tile_of,
)
from videonsa.ops.triton.index import Tiles
from videonsa.ops.triton.tuning import Config


@triton.jit
def _compressed_kernel(
    q,  # [R, HQ, D]
    k_cmp,  # [C, H, D]
    v_cmp,  # [C, H, D]
    values,  # v_cmp, as a pointer
    poison,  # [C, H] or None, as poisoned
    poisoned,  # [1]
    o_cmp,  # [R, HQ, D]
    lse_cmp,  # [R, HQ]
    tiles,  # [tiles, 2] or None
    rows_of_sample,
    row_begin,  # [R]
    row_end,  # [R]
    num_blocks,
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
    TMA: tl.constexpr,
):
    # Late rows see the most blocks: they start first.
    i_tile = tl.num_programs(0) // HQ - 1 - tl.program_id(0) // HQ
    i_hq = tl.program_id(0) % HQ
    i_h = i_hq // G
    first_row, num_rows = tile_of(tiles, i_tile, rows_of_sample, BLOCK_M)
    if num_rows == 0:
        return
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    m_row = o_m < num_rows
    b_begin = tl.load(row_begin + first_row + o_m, mask=m_row, other=0)
    b_end = tl.load(row_end + first_row + o_m, mask=m_row, other=0)
    begin = tl.load(row_begin + first_row)
    end = tl.load(row_end + first_row + num_rows - 1)
    # Every row of the tile sees [all_begin, all_end); only the tiles of keys around it need a mask.
    num_front = tl.cdiv(tl.load(row_begin + first_row + num_rows - 1) - begin, BLOCK_N)
    all_begin = begin + num_front * BLOCK_N
    num_all = tl.maximum(tl.load(row_end + first_row) - all_begin, 0) // BLOCK_N
    all_end = all_begin + num_all * BLOCK_N

    base = first_row.to(tl.int64)
    p_q = q + base * stride_qr + i_hq * stride_qh
    b_q = load_rows(p_q + (o_m[:, None] * stride_qr + o_d[None, :]), m_row, o_d, D, BLOCK_D)
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i_n in range(num_all):
        start = all_begin + i_n * BLOCK_N
        m_n = o_n < num_blocks - start
        b_k = load_keys(k_cmp, start, i_h, H * D, D, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_v = load_keys(v_cmp, start, i_h, H * D, D, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_s = scores(b_q, b_k)
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    num_border = num_front + tl.cdiv(tl.maximum(end - all_end, 0), BLOCK_N)
    num_clean = 0
    if poison is not None:
        num_clean = clean_steps(poisoned, num_border)
    for i_n in range(num_clean):
        start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
        m_n = o_n < num_blocks - start
        b_k = load_keys(k_cmp, start, i_h, H * D, D, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_v = load_keys(v_cmp, start, i_h, H * D, D, o_n, m_n, o_d, D, BLOCK_D, TMA)
        o_c = start + o_n
        m_s = (o_c[None, :] >= b_begin[:, None]) & (o_c[None, :] < b_end[:, None])
        b_s = tl.where(m_s, scores(b_q, b_k), float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    for i_n in tl.range(num_clean, num_border, num_stages=1):
        start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
        m_n = o_n < num_blocks - start
        b_k = load_keys(k_cmp, start, i_h, H * D, D, o_n, m_n, o_d, D, BLOCK_D, TMA)
        o_c = start + o_n
        b_v, b_poison = load_finite(
            values, poison, start, i_h, H * D, D, o_n, o_c < end, o_d, H, D, BLOCK_D
        )
        m_s = (o_c[None, :] >= b_begin[:, None]) & (o_c[None, :] < b_end[:, None])
        b_s = tl.where(m_s, scores(b_q, b_k) + b_poison[None, :], float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    b_o, b_lse = softmax_end(b_acc, b_m, b_l)
    o_row = (base + o_m)[:, None] * HQ + i_hq
    store_rows(o_cmp + o_row * D + o_d[None, :], b_o, m_row, o_d, D, BLOCK_D)
    tl.store(lse_cmp + (base + o_m) * HQ + i_hq, b_lse, mask=m_row)


def compressed(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    poison: Tensor | None,
    poisoned: Tensor | None,
    row_begin: Tensor,
    row_end: Tensor,
    tiles: Tiles,
    *,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """o_cmp `[R, HQ, D]` and its LSE `[R, HQ]`: row r sees the blocks [row_begin, row_end).

    `tiles` are of `config.block_m` rows; both bounds never fall along the rows of a tile. `poison`
    `[C, H]` float32 is NaN for a key or value that is not finite, else 0, and `poisoned` `[1]` is
    not 0 where some are NaN. Both are None where a tile has one row, or where a row may see what
    the other rows of its tile see.
    """
    num_rows, num_heads, dim = q.shape
    num_blocks, num_kv_heads, _ = k_cmp.shape
    o_cmp = torch.empty((num_rows, num_heads, dim), dtype=q.dtype, device=q.device)
    lse_cmp = torch.empty((num_rows, num_heads), dtype=torch.float32, device=q.device)
    tma = config.tma and fits_tma(k_cmp)
    _compressed_kernel[(tiles.num * num_heads,)](
        q,
        key_source(k_cmp, config.block_n, tma=tma),
        key_source(v_cmp, config.block_n, tma=tma),
        v_cmp,
        poison,
        poisoned,
        o_cmp,
        lse_cmp,
        tiles.table,
        tiles.rows_of_sample,
        row_begin,
        row_end,
        num_blocks,
        *q.stride()[:2],
        dim**-0.5 * LOG2_E,
        num_heads,
        num_kv_heads,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        TMA=tma,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.maxnreg,
    )
    return o_cmp, lse_cmp
