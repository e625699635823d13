"""The window branch, and the gated sum of the three branches in the same pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    Keys,
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
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.tuning import Config


@triton.jit
def _window_kernel(
    q,  # [R, HQ, D]
    k,  # [S, H, D]
    v,  # [S, H, D]
    values,  # v, as a pointer
    poison,  # [S, H]
    poisoned,  # [1]
    gates,  # [R, HQ, 3]
    o_cmp,  # [R, HQ, D]
    o_slc,  # [R, HQ, D]
    o_win,  # [R, HQ, D], written if STORE_BRANCH
    lse_win,  # [R, HQ]
    output,  # [R, HQ, D]
    tiles,  # [tiles, 2] or None
    rows_of_sample,
    row_key,  # [R]
    row_begin,  # [R]
    block_start,  # [C]
    num_keys,
    stride_qr,
    stride_qh,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    stride_gr,
    stride_gh,
    stride_gb,
    window,
    scale_log2,
    HQ,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE: tl.constexpr,
    USE_CMP: tl.constexpr,
    USE_SLC: tl.constexpr,
    USE_WIN: tl.constexpr,
    STORE_BRANCH: tl.constexpr,
    TMA: tl.constexpr,
):
    i_tile, i_h = tl.program_id(0) // H, tl.program_id(0) % H
    first_row, num_rows = tile_of(tiles, i_tile, rows_of_sample, TILE)
    if num_rows == 0:
        return
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, o_g = o_m // G, o_m % G  # row and head of each line of the tile
    m_row = (o_t < TILE) & (o_t < num_rows)
    base = first_row.to(tl.int64)
    # Offsets of the lines of the branches and the output, and of their elements.
    o_row = base * HQ + i_h * G + (o_t * HQ + o_g)
    b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if USE_WIN or STORE_BRANCH:
        key = tl.load(row_key + first_row)  # the keys of a tile's rows are consecutive
        sample = tl.load(block_start + tl.load(row_begin + first_row))
        begin, end = tl.maximum(key - window + 1, sample), key + num_rows
        # Every row sees the keys [all_begin, all_end); only the tiles of keys around need a mask.
        all_begin = tl.maximum(tl.minimum(key + num_rows - window, key + 1), begin)
        num_front = tl.cdiv(all_begin - begin, BLOCK_N)
        num_all = (key + 1 - all_begin) // BLOCK_N
        all_end = all_begin + num_all * BLOCK_N
        p_q = q + base * stride_qr + i_h * G * stride_qh
        o_q = o_t * stride_qr + o_g * stride_qh
        b_q = load_rows(p_q + (o_q[:, None] + o_d[None, :]), m_row, o_d, D, BLOCK_D)
        b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_l = tl.zeros([BLOCK_M], tl.float32)
        for i_n in range(num_all):
            start = all_begin + i_n * BLOCK_N
            m_n = o_n < num_keys - start
            b_k = load_keys(k, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, D, BLOCK_D, TMA)
            b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
            b_s = scores(b_q, b_k)
            b_sum, b_m, b_l = softmax_step(b_s, b_v, b_sum, b_m, b_l, scale_log2)
        num_border = num_front + tl.cdiv(end - all_end, BLOCK_N)
        num_clean = clean_steps(poisoned, num_border)
        for i_n in range(num_clean):
            # The front tiles end at all_begin: the first may begin before the sample, masked.
            start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
            m_n = (o_n < num_keys - start) & (o_n >= begin - start)
            b_k = load_keys(k, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, D, BLOCK_D, TMA)
            b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
            b_behind = (key - start) + o_t[:, None] - o_n[None, :]
            m_s = (b_behind >= 0) & (b_behind < window) & (o_n >= begin - start)[None, :]
            b_s = tl.where(m_s, scores(b_q, b_k), float("-inf"))
            b_sum, b_m, b_l = softmax_step(b_s, b_v, b_sum, b_m, b_l, scale_log2)
        for i_n in tl.range(num_clean, num_border, num_stages=1):
            start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
            m_n = (o_n < end - start) & (o_n >= begin - start)
            b_k = load_keys(k, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, D, BLOCK_D, TMA)
            b_v, b_poison = load_finite(
                values, poison, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, H, D, BLOCK_D
            )
            b_behind = (key - start) + o_t[:, None] - o_n[None, :]
            m_s = (b_behind >= 0) & (b_behind < window) & (o_n >= begin - start)[None, :]
            b_s = tl.where(m_s, scores(b_q, b_k) + b_poison[None, :], float("-inf"))
            b_sum, b_m, b_l = softmax_step(b_s, b_v, b_sum, b_m, b_l, scale_log2)
        b_sum, b_lse = softmax_end(b_sum, b_m, b_l)
        if STORE_BRANCH:
            store_rows(o_win + o_row[:, None] * D + o_d[None, :], b_sum, m_row, o_d, D, BLOCK_D)
            tl.store(lse_win + o_row, b_lse, mask=m_row)
    p_gate = gates + base * stride_gr + i_h * G * stride_gh + (o_t * stride_gr + o_g * stride_gh)
    if USE_WIN:
        b_gate = tl.load(p_gate + 2 * stride_gb, mask=m_row, other=0.0)
        b_sum = b_sum * b_gate.to(tl.float32)[:, None]
    else:
        b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if USE_CMP:
        b_o = load_rows(o_cmp + o_row[:, None] * D + o_d[None, :], m_row, o_d, D, BLOCK_D)
        b_gate = tl.load(p_gate, mask=m_row, other=0.0)
        b_sum += b_o.to(tl.float32) * b_gate.to(tl.float32)[:, None]
    if USE_SLC:
        b_o = load_rows(o_slc + o_row[:, None] * D + o_d[None, :], m_row, o_d, D, BLOCK_D)
        b_gate = tl.load(p_gate + stride_gb, mask=m_row, other=0.0)
        b_sum += b_o.to(tl.float32) * b_gate.to(tl.float32)[:, None]
    store_rows(output + o_row[:, None] * D + o_d[None, :], b_sum, m_row, o_d, D, BLOCK_D)


def window_and_sum(
    q: Tensor,
    keys: Keys,
    gates: Tensor,
    o_cmp: Tensor | None,
    o_slc: Tensor | None,
    tiles: Tiles,
    index: StreamIndex,
    *,
    window_size: int,
    use_window: bool,
    return_branch: bool,
    config: Config,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gated sum `[R, HQ, D]`, and with `return_branch` o_win and its LSE.

    gates `[R, HQ, 3]`; a branch given as None takes no part. The heads of a group
    of the rows of a tile fill at most `config.block_m` lines.
    """
    num_rows, num_heads, dim = q.shape
    k, v = keys.k, keys.v
    num_kv_heads = k.shape[1]
    output = torch.empty((num_rows, num_heads, dim), dtype=q.dtype, device=q.device)
    o_win = torch.empty_like(output) if return_branch else None
    lse = output.new_empty((num_rows, num_heads), dtype=torch.float32) if return_branch else None
    tma = config.tma and fits_tma(k) and fits_tma(v)
    _window_kernel[(tiles.num * num_kv_heads,)](
        q,
        key_source(k, config.block_n, tma=tma),
        key_source(v, config.block_n, tma=tma),
        v,
        keys.poison,
        keys.poisoned,
        gates,
        o_cmp,
        o_slc,
        o_win,
        lse,
        output,
        tiles.table,
        tiles.rows_of_sample,
        index.row_key,
        index.row_begin,
        index.block_start,
        len(k),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *gates.stride(),
        window_size,
        dim**-0.5 * LOG2_E,
        num_heads,
        num_kv_heads,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.block_m,
        TILE=tiles.size,
        BLOCK_N=config.block_n,
        USE_CMP=o_cmp is not None,
        USE_SLC=o_slc is not None,
        USE_WIN=use_window,
        STORE_BRANCH=return_branch,
        TMA=tma,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.maxnreg,
    )
    return output, o_win, lse
