"""Importance of the blocks for every row, and the n most important: written to no [T, C] tensor.

Rows go through in chunks whose scores fit a buffer of fixed size; a chunk's scores are consumed by
the top-n before the next chunk overwrites them.
"""

import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import LOG2_E, load_rows, scores
from videonsa.ops.triton.tuning import Config

INFINITE = 0x7F800000
"""The bits of +inf: the rank of a block that is always selected."""


@triton.jit
def _importance_kernel(
    q,  # [R, HQ, D]
    k_cmp,  # [C, H, D]
    lse_cmp,  # [R, HQ]
    importance,  # [rows of the chunk, H, max_blocks] float32
    tiles,  # [tiles, 2], those of the chunk
    row_begin,  # [R]
    row_end,  # [R]
    num_blocks,
    max_blocks,
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
    SUM_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_n, i_tile, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    if num_rows == 0:
        return
    begin = tl.load(row_begin + first_row)
    end = tl.load(row_end + first_row + num_rows - 1)
    if begin + i_n * BLOCK_N >= end:
        return
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    m_row = o_m < num_rows
    o_c = begin + i_n * BLOCK_N + o_n
    p_k = k_cmp + (o_c.to(tl.int64)[:, None] * H + i_h) * D + o_d[None, :]
    b_k = load_rows(p_k, o_c < num_blocks, o_d, D, BLOCK_D)
    base = first_row.to(tl.int64)
    p_q = q + base * stride_qr + o_m[:, None] * stride_qr + o_d[None, :]
    p_lse = lse_cmp + (base + o_m) * HQ
    b_p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_g in range(G):
        i_hq = i_h * G + i_g
        b_q = load_rows(p_q + i_hq * stride_qh, m_row, o_d, D, BLOCK_D)
        # [BLOCK_M]; +inf where the row sees no block, so that its probabilities are 0
        b_lse = tl.load(p_lse + i_hq, mask=m_row, other=float("inf"))
        b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse) * 1.4426950408889634
        b_p += tl.exp2(scores(b_q, b_k, PRECISION) * scale_log2 - b_lse[:, None])
    o_local = i_n * BLOCK_N + o_n
    if SUM_ROWS:
        p_out = importance + (i_tile.to(tl.int64) * H + i_h) * max_blocks + o_local
        tl.store(p_out, tl.sum(b_p, 0), mask=o_local < max_blocks)
    else:
        o_row = i_tile.to(tl.int64) * BLOCK_M + o_m
        p_out = importance + (o_row[:, None] * H + i_h) * max_blocks + o_local[None, :]
        tl.store(p_out, b_p, mask=m_row[:, None] & (o_local[None, :] < max_blocks))


@triton.jit
def _take_best(
    p_in,  # [ROWS, 1] scores of each row
    p_out,  # [ROWS, 1] selection of each row
    m_row,
    b_begin,
    b_num,
    b_current,
    NUM_SELECTED: tl.constexpr,
    NUM_INIT: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The selection of a few rows among their first `b_num` <= BLOCK_C blocks."""
    o_c, o_s = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    m_seen = m_row[:, None] & (o_c[None, :] < b_num[:, None])
    # Probabilities are not negative, so their bits rank as they do; -1 is no candidate.
    b_rank = tl.load(p_in + o_c[None, :], mask=m_seen, other=0.0).to(tl.int32, bitcast=True)
    b_behind = (b_current - b_begin)[:, None] - o_c[None, :]
    m_taken = (o_c[None, :] < NUM_INIT) | (b_behind <= NUM_LOCAL)
    m_taken = m_row[:, None] & (b_behind >= 0) & (m_taken | (b_behind == 0))
    b_rank = tl.where(m_seen & (m_taken == 0), b_rank, -1)
    # [ROWS] blocks still to take
    b_num_taken = tl.sum(m_taken.to(tl.int32), 1)
    b_want = tl.minimum(NUM_SELECTED - b_num_taken, tl.sum((b_rank >= 0).to(tl.int32), 1))

    # The highest rank that at least `b_want` candidates reach, by bisection over the bits.
    b_low = tl.zeros([ROWS], tl.int32)
    b_high = tl.where(b_want > 0, tl.max(b_rank, 1) + 1, 1)
    while tl.max(b_high - b_low, 0) > 1:
        b_mid = b_low + (b_high - b_low) // 2
        b_count = tl.sum((b_rank >= b_mid[:, None]).to(tl.int32), 1)
        b_low = tl.where(b_count >= b_want, b_mid, b_low)
        b_high = tl.where(b_count >= b_want, b_high, b_mid)
        b_high = tl.where(b_count == b_want, b_low + 1, b_high)
    m_above = b_rank > b_low[:, None]
    m_equal = b_rank == b_low[:, None]
    b_rest = b_want - tl.sum(m_above.to(tl.int32), 1)
    m_equal = m_equal & (tl.cumsum(m_equal.to(tl.int32), 1) <= b_rest[:, None])
    m_best = m_taken | ((m_above | m_equal) & (b_want > 0)[:, None])
    b_slot = tl.cumsum(m_best.to(tl.int32), 1) - 1
    tl.store(p_out + b_slot, b_begin[:, None] + o_c[None, :], mask=m_best)
    b_total = b_num_taken + tl.maximum(b_want, 0)
    m_none = m_row[:, None] & (o_s[None, :] >= b_total[:, None]) & (o_s[None, :] < NUM_SELECTED)
    tl.store(p_out + o_s[None, :], tl.full([ROWS, BLOCK_S], -1, tl.int32), mask=m_none)


@triton.jit
def _top_blocks_kernel(
    importance,  # [rows of the chunk, H, max_blocks] float32
    selected,  # [rows, H, n] int32
    tiles,  # [tiles, 2], those of the chunk: first row and rows
    begin_of,  # [rows] first block
    end_of,  # [rows] one past the last candidate
    current_of,  # [rows] current block
    max_blocks,
    H,
    NUM_SELECTED: tl.constexpr,
    NUM_INIT: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    i_r, i_h = tl.program_id(0) * ROWS, tl.program_id(1)
    i_tile, in_tile = i_r // TILE, i_r % TILE
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    if in_tile >= num_rows:
        return
    o_r = tl.arange(0, ROWS)
    m_row = in_tile + o_r < num_rows
    o_row = first_row + in_tile + o_r
    b_begin = tl.load(begin_of + o_row, mask=m_row, other=0)
    b_num = tl.load(end_of + o_row, mask=m_row, other=0) - b_begin
    b_current = tl.load(current_of + o_row, mask=m_row, other=0)
    p_in = importance + ((i_r + o_r).to(tl.int64)[:, None] * H + i_h) * max_blocks
    p_out = selected + (o_row.to(tl.int64)[:, None] * H + i_h) * NUM_SELECTED
    # The current block may lie just beyond the candidates.
    reach = tl.max(b_current - b_begin, 0) + 1
    if reach <= BLOCK_C // 4:
        _take_best(
            p_in, p_out, m_row, b_begin, b_num, b_current,
            NUM_SELECTED, NUM_INIT, NUM_LOCAL, ROWS, BLOCK_C // 4, BLOCK_S,
        )  # fmt: skip
    elif reach <= BLOCK_C // 2:
        _take_best(
            p_in, p_out, m_row, b_begin, b_num, b_current,
            NUM_SELECTED, NUM_INIT, NUM_LOCAL, ROWS, BLOCK_C // 2, BLOCK_S,
        )  # fmt: skip
    else:
        _take_best(
            p_in, p_out, m_row, b_begin, b_num, b_current,
            NUM_SELECTED, NUM_INIT, NUM_LOCAL, ROWS, BLOCK_C, BLOCK_S,
        )  # fmt: skip


def importance(
    q: Tensor,
    k_cmp: Tensor,
    lse_cmp: Tensor,
    row_begin: Tensor,
    row_end: Tensor,
    tiles: Tensor,
    out: Tensor,
    *,
    sum_rows: bool,
    config: Config,
) -> None:
    """Writes the compressed probabilities summed over the heads of a group, or rows too.

    out: float32 `[len(tiles) * block_m, H, max_blocks]`, or `[len(tiles), H, max_blocks]` with
    `sum_rows`; column c is the c-th block of the tile's sample. Columns that no row of the tile
    sees are not written.
    """
    _, num_heads, dim = q.shape
    num_blocks, num_kv_heads, _ = k_cmp.shape
    max_blocks = out.shape[-1]
    _importance_kernel[(triton.cdiv(max_blocks, config.block_n), len(tiles), num_kv_heads)](
        q,
        k_cmp,
        lse_cmp,
        out,
        tiles,
        row_begin,
        row_end,
        num_blocks,
        max_blocks,
        *q.stride()[:2],
        dim**-0.5 * LOG2_E,
        num_heads,
        num_kv_heads,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        SUM_ROWS=sum_rows,
        PRECISION=config.precision,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def top_blocks(
    scores: Tensor,
    selected: Tensor,
    tiles: Tensor,
    begin: Tensor,
    end: Tensor,
    current: Tensor,
    *,
    tile: int,
    num_init: int,
    num_local: int,
) -> None:
    """Writes the selection of the rows of some tiles: flat block numbers, ascending, then -1.

    Args:
        scores: `[len(tiles) * tile, H, max_blocks]` float32, as `importance` writes them.
        selected: `[R, H, n]` int32, written.
        tiles: `[tiles, 2]`.
        begin: `[R]` first block of the row's sample.
        end: `[R]` one past the last candidate.
        current: `[R]` the block that is always taken.
        tile: rows of a tile in `scores`.
        num_init: first blocks that are always taken, as far as they lie before the current.
        num_local: blocks just before the current that are always taken.
    """
    num_kv_heads, num_selected = selected.shape[1:]
    block_c = max(triton.next_power_of_2(scores.shape[-1]), 32)
    # About 64 candidates a thread, a row within one warp where that is enough.
    num_warps = 4 if block_c <= 4096 else min(block_c // 2048, 32)
    rows = min(tile, max(1, 8192 // block_c))
    _top_blocks_kernel[(len(tiles) * tile // rows, num_kv_heads)](
        scores,
        selected,
        tiles,
        begin,
        end,
        current,
        scores.shape[-1],
        num_kv_heads,
        NUM_SELECTED=num_selected,
        NUM_INIT=num_init,
        NUM_LOCAL=num_local,
        TILE=tile,
        ROWS=rows,
        BLOCK_C=block_c,
        BLOCK_S=triton.next_power_of_2(num_selected),
        num_warps=num_warps,
    )
