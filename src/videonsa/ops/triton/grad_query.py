"""Gradient of the queries: every tile of rows walks again what it attended to.

Compressed blocks, window and shared blocks add to one accumulator; what the scattered pairs gave is
read from the output and added last.
"""

import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    Keys,
    clean_steps,
    fits_tma,
    gated_weights,
    key_source,
    load_finite,
    load_keys,
    load_rows,
    load_terms,
    scores,
    store_rows,
    tile_of,
)
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.selected import Plan
from videonsa.ops.triton.tuning import Config, rows_of_tile


@triton.jit
def _query_step(
    b_q, b_do, b_k, b_v, b_dq, b_lse, b_delta, b_gate, m_s, scale_log2, MASK: tl.constexpr
):
    """b_dq [M, D] with one more tile of keys; m_s [M, N] where MASK.

    Keys that are not finite are 0 there: the delta of a line that sees them is NaN.
    """
    b_s = scores(b_q, b_k)
    b_dp = scores(b_do, b_v)
    _, b_ds = gated_weights(
        b_s, b_dp, b_lse[:, None], b_delta[:, None], b_gate[:, None], scale_log2
    )
    if MASK:
        b_ds = tl.where(m_s, b_ds, 0.0)
    return tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")


@triton.jit
def _interval_gradient(
    b_q,
    b_do,
    b_dq,
    b_lse,
    b_delta,
    b_gate,
    b_low,  # [M] first key of each line
    b_high,  # [M] one past its last
    begin,  # of all lines
    all_begin,  # [all_begin, all_end) is seen by every line, in whole tiles
    all_end,
    end,
    k,
    v,
    keys,  # k, as a pointer
    poison,
    poisoned,
    num_keys,
    H,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    i_h,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """Adds the keys [b_low, b_high) of each line."""
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    for i_n in range((all_end - all_begin) // BLOCK_N):
        start = all_begin + i_n * BLOCK_N
        m_n = o_n < num_keys - start
        b_k = load_keys(k, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_dq = _query_step(
            b_q, b_do, b_k, b_v, b_dq, b_lse, b_delta, b_gate, m_n, scale_log2, MASK=False
        )
    num_front = tl.cdiv(all_begin - begin, BLOCK_N)
    num_border = num_front + tl.cdiv(tl.maximum(end - all_end, 0), BLOCK_N)
    num_clean = clean_steps(poisoned, num_border)
    for i_n in range(num_clean):
        # The front tiles end at all_begin: the first may begin before the sample, masked.
        start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
        o_key = start + o_n
        m_n = (o_key < num_keys) & (o_key >= begin)
        b_k = load_keys(k, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        m_s = (o_key[None, :] >= b_low[:, None]) & (o_key[None, :] < b_high[:, None])
        b_dq = _query_step(
            b_q, b_do, b_k, b_v, b_dq, b_lse, b_delta, b_gate, m_s, scale_log2, MASK=True
        )
    for i_n in tl.range(num_clean, num_border, num_stages=1):
        start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
        o_key = start + o_n
        m_n = (o_key < end) & (o_key >= begin)
        b_k, _ = load_finite(
            keys, poison, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, H, D, BLOCK_D
        )
        b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        m_s = (o_key[None, :] >= b_low[:, None]) & (o_key[None, :] < b_high[:, None])
        b_dq = _query_step(
            b_q, b_do, b_k, b_v, b_dq, b_lse, b_delta, b_gate, m_s, scale_log2, MASK=True
        )
    return b_dq


@triton.jit
def _shared_gradient(
    b_q,
    b_do,
    b_dq,
    b_lse,
    b_delta,
    b_gate,
    b_key,  # [M] the key at the row of each line
    b_bit,  # [M] its row in the tile of the plan
    p_start,
    p_size,
    p_rows,
    p_num,
    end,  # one past the last key that a line sees
    k,
    v,
    keys,  # k, as a pointer
    poison,
    poisoned,
    H,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    i_h,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    TMA: tl.constexpr,
):
    """Adds the shared blocks of a tile, each in PARTS tiles of keys."""
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    num, num_before = tl.load(p_num), tl.load(p_num + 1)
    for i in range(num_before * PARTS):  # every row of the tile may see all keys that are read
        part = i % PARTS * BLOCK_N
        start = tl.load(p_start + i // PARTS) + part
        m_bit = ((tl.load(p_rows + i // PARTS) >> b_bit) & 1) != 0
        m_n = o_n < BLOCK_N
        if not FULL_BLOCKS:
            m_n = o_n < tl.load(p_size + i // PARTS) - part
        b_k = load_keys(k, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_own = tl.where(m_bit, b_lse, float("inf"))
        m_s = m_n[None, :]
        b_dq = _query_step(
            b_q, b_do, b_k, b_v, b_dq, b_own, b_delta, b_gate, m_s, scale_log2, not FULL_BLOCKS
        )
    num_border = (num - num_before) * PARTS
    num_clean = num_before * PARTS + clean_steps(poisoned, num_border)
    for i in range(num_before * PARTS, num_clean):
        part = i % PARTS * BLOCK_N
        start = tl.load(p_start + i // PARTS) + part
        m_bit = ((tl.load(p_rows + i // PARTS) >> b_bit) & 1) != 0
        m_n = (o_n < tl.load(p_size + i // PARTS) - part) & (o_n < end - start)
        b_k = load_keys(k, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_own = tl.where(m_bit, b_lse, float("inf"))
        m_s = m_n[None, :] & (o_n[None, :] <= (b_key - start)[:, None])
        b_dq = _query_step(b_q, b_do, b_k, b_v, b_dq, b_own, b_delta, b_gate, m_s, scale_log2, True)
    for i in tl.range(num_clean, num * PARTS, num_stages=1):
        part = i % PARTS * BLOCK_N
        start = tl.load(p_start + i // PARTS) + part
        m_bit = ((tl.load(p_rows + i // PARTS) >> b_bit) & 1) != 0
        m_n = (o_n < tl.load(p_size + i // PARTS) - part) & (o_n < end - start)
        b_k, _ = load_finite(
            keys, poison, start, i_h, stride_ks, stride_kh, o_n, m_n, o_d, H, D, BLOCK_D
        )
        b_v = load_keys(v, start, i_h, stride_vs, stride_vh, o_n, m_n, o_d, D, BLOCK_D, TMA)
        b_own = tl.where(m_bit, b_lse, float("inf"))
        m_s = m_n[None, :] & (o_n[None, :] <= (b_key - start)[:, None])
        b_dq = _query_step(b_q, b_do, b_k, b_v, b_dq, b_own, b_delta, b_gate, m_s, scale_log2, True)
    return b_dq


@triton.jit
def _query_gradient_kernel(
    q,  # [R, HQ, D]
    k,  # [S, H, D]
    v,  # [S, H, D]
    k_cmp,  # [C, H, D]
    v_cmp,  # [C, H, D]
    keys,  # k, as a pointer
    keys_cmp,  # k_cmp, likewise
    poison,  # [S, H]
    poison_cmp,  # [C, H]
    poisoned,  # [1]
    grad,  # [R, HQ, D] of the output
    terms,  # [3, 3, R, HQ]
    grad_q,  # [R, HQ, D]
    tiles,  # [tiles, 2] or None
    rows_of_sample,
    plan_start,  # [tiles, H, BOUND]
    plan_size,  # [tiles, H, BOUND]
    plan_rows,  # [tiles, H, BOUND]
    num_shared,  # [tiles, H, 2]
    num_scattered,  # [R, H]
    row_key,  # [R]
    row_begin,  # [R]
    row_end,  # [R]
    block_start,  # [C]
    num_keys,
    num_blocks,
    num_lines,  # R HQ
    stride_qr,
    stride_qh,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    window,
    scale_log2,
    scale,
    HQ,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PARTS: tl.constexpr,
    BOUND: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    USE_CMP: tl.constexpr,
    USE_SLC: tl.constexpr,
    USE_WIN: tl.constexpr,
    TMA: tl.constexpr,
    TMA_CMP: tl.constexpr,
):
    cuts: tl.constexpr = TILE // ROWS  # of a tile of the plan
    i_unit = tl.num_programs(0) - 1 - tl.program_id(0)  # late rows see the most blocks
    i_tile, i_h, i_cut = i_unit // (H * cuts), i_unit % H, i_unit // H % cuts
    first_row, num_rows = tile_of(tiles, i_tile, rows_of_sample, TILE)
    num_rows = tl.minimum(num_rows - i_cut * ROWS, ROWS)
    if num_rows <= 0:
        return
    first_row += i_cut * ROWS
    o_m, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    o_t, o_g = o_m // G, o_m % G  # row and head of each line of the tile
    m_row = (o_t < ROWS) & (o_t < num_rows)
    base = first_row.to(tl.int64)
    o_line = base * HQ + i_h * G + (o_t * HQ + o_g)
    p_q = q + base * stride_qr + i_h * G * stride_qh
    o_q = o_t * stride_qr + o_g * stride_qh
    b_q = load_rows(p_q + (o_q[:, None] + o_d[None, :]), m_row, o_d, D, BLOCK_D)
    p_line = o_line[:, None] * D + o_d[None, :]
    b_do = load_rows(grad + p_line, m_row, o_d, D, BLOCK_D)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    key = tl.load(row_key + first_row)  # the keys of a tile's rows are consecutive
    if USE_CMP:
        b_lse, b_delta, b_gate = load_terms(terms, o_line, m_row, num_lines, 0)
        begin = tl.load(row_begin + first_row)
        b_end = tl.load(row_end + first_row + o_t, mask=m_row, other=0)
        all_seen = tl.maximum(tl.load(row_end + first_row) - begin, 0) // BLOCK_N * BLOCK_N
        b_dq = _interval_gradient(
            b_q,
            b_do,
            b_dq,
            b_lse,
            b_delta,
            b_gate,
            tl.zeros([BLOCK_M], tl.int32) + begin,
            b_end,
            begin,
            begin,
            begin + all_seen,
            tl.load(row_end + first_row + num_rows - 1),
            k_cmp,
            v_cmp,
            keys_cmp,
            poison_cmp,
            poisoned,
            num_blocks,
            H,
            H * D,
            D,
            H * D,
            D,
            i_h,
            scale_log2,
            D,
            BLOCK_D,
            BLOCK_N,
            TMA_CMP,
        )
    if USE_WIN:
        b_lse, b_delta, b_gate = load_terms(terms, o_line, m_row, num_lines, 2)
        sample = tl.load(block_start + tl.load(row_begin + first_row))
        begin = tl.maximum(key - window + 1, sample)
        all_begin = tl.maximum(tl.minimum(key + num_rows - window, key + 1), begin)
        b_dq = _interval_gradient(
            b_q,
            b_do,
            b_dq,
            b_lse,
            b_delta,
            b_gate,
            tl.maximum(key + o_t - window + 1, sample),
            key + o_t + 1,
            begin,
            all_begin,
            all_begin + (key + 1 - all_begin) // BLOCK_N * BLOCK_N,
            key + num_rows,
            k,
            v,
            keys,
            poison,
            poisoned,
            num_keys,
            H,
            stride_ks,
            stride_kh,
            stride_vs,
            stride_vh,
            i_h,
            scale_log2,
            D,
            BLOCK_D,
            BLOCK_N,
            TMA,
        )
    if USE_SLC:
        b_lse, b_delta, b_gate = load_terms(terms, o_line, m_row, num_lines, 1)
        o_tile = i_tile.to(tl.int64) * H + i_h
        b_dq = _shared_gradient(
            b_q,
            b_do,
            b_dq,
            b_lse,
            b_delta,
            b_gate,
            key + o_t,
            i_cut * ROWS + o_t,
            plan_start + o_tile * BOUND,
            plan_size + o_tile * BOUND,
            plan_rows + o_tile * BOUND,
            num_shared + o_tile * 2,
            key + num_rows,
            k,
            v,
            keys,
            poison,
            poisoned,
            H,
            stride_ks,
            stride_kh,
            stride_vs,
            stride_vh,
            i_h,
            scale_log2,
            D,
            BLOCK_D,
            BLOCK_S,
            PARTS,
            FULL_BLOCKS,
            TMA,
        )
    b_dq *= scale
    if USE_SLC:
        b_num = tl.load(num_scattered + (base + o_t) * H + i_h, mask=m_row, other=0)
        b_dq += load_rows(grad_q + p_line, b_num > 0, o_d, D, BLOCK_D).to(tl.float32)
    store_rows(grad_q + p_line, b_dq, m_row, o_d, D, BLOCK_D)


def query_gradient(
    q: Tensor,
    keys: Keys,
    means: Keys,
    grad: Tensor,
    terms: Tensor,
    grad_q: Tensor,
    tiles: Tiles,
    plan: Plan | None,
    index: StreamIndex,
    *,
    use_compressed: bool,
    window_size: int | None,
    config: Config,
    block_s: int,
) -> None:
    """Completes grad_q `[R, HQ, D]`.

    Args:
        q: `[R, HQ, D]`.
        keys: of the stream.
        means: of its blocks.
        grad: `[R, HQ, D]` contiguous, of the output.
        terms: `[3, 3, R, HQ]` float32, as `branch_terms` makes them.
        grad_q: holds what the scattered pairs of the plan gave; updated.
        tiles: of the plan, or of as many rows.
        plan: of these tiles, None without a selected branch.
        index: of these rows and keys.
        use_compressed: whether there is a compressed branch.
        window_size: None without a window branch.
        config: of the kernel; its lines may be those of a part of a tile.
        block_s: tokens of the largest block, as a power of two.
    """
    num_rows, num_heads, dim = q.shape
    k, v = keys.k, keys.v
    num_keys, num_kv_heads, _ = k.shape
    group = num_heads // num_kv_heads
    rows = rows_of_tile(group, config.block_m, most=tiles.size)
    tma = config.tma and fits_tma(k) and fits_tma(v) and block_s >= config.block_n
    tma_cmp = config.tma and fits_tma(means.k)
    shared = (None,) * 5 if plan is None else (*plan.shared, plan.num_scattered)
    _query_gradient_kernel[(tiles.num * num_kv_heads * (tiles.size // rows),)](
        q,
        key_source(k, config.block_n, tma=tma),
        key_source(v, config.block_n, tma=tma),
        key_source(means.k, config.block_n, tma=tma_cmp),
        key_source(means.v, config.block_n, tma=tma_cmp),
        k,
        means.k,
        keys.poison,
        means.poison,
        keys.poisoned,
        grad,
        terms,
        grad_q,
        tiles.table,
        tiles.rows_of_sample,
        *shared,
        index.row_key,
        index.row_begin,
        index.row_end,
        index.block_start,
        num_keys,
        len(index.block_start),
        num_rows * num_heads,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        window_size or 0,
        dim**-0.5 * LOG2_E,
        dim**-0.5,
        num_heads,
        num_kv_heads,
        G=group,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=max(16, triton.next_power_of_2(rows * group)),
        BLOCK_N=config.block_n,
        BLOCK_S=min(block_s, config.block_n),
        PARTS=max(1, block_s // config.block_n),
        BOUND=1 if plan is None else plan.start.shape[-1],
        TILE=tiles.size,
        ROWS=rows,
        FULL_BLOCKS=index.uniform and index.max_size == block_s,
        USE_CMP=use_compressed,
        USE_SLC=plan is not None,
        USE_WIN=window_size is not None,
        TMA=tma,
        TMA_CMP=tma_cmp,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.maxnreg,
    )
