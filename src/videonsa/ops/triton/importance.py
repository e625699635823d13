"""Importance of the blocks for every row, and the n most important: written to no [T, C] tensor.

Rows go through in chunks whose scores fit a buffer of fixed size; a chunk's scores are consumed by
the top-n before the next chunk overwrites them.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    descriptors,
    heads,
    launcher,
    load_head,
    scores,
    tile_rows,
)
from videonsa.ops.triton.index import Tiles
from videonsa.ops.triton.tuning import Config

RANKED_AT_ONCE = 256
"""Values that a program ranks: 8 a thread of one warp, so that registers leave room for many."""
MAX_RANKED = 512
"""Blocks that are ranked at once; more are ranked by groups first."""


@triton.jit(do_not_specialize=["first_tile"])
def _importance_kernel(
    q,  # heads of [R, HQ, D]
    k_cmp,  # heads of [C, H, D] contiguous
    q_tma,  # descriptor of q, or None
    k_tma,
    lse_cmp,  # [R, HQ]
    out,  # buffers of `Scores`
    tiles,  # runs of `Tiles`
    first_tile,  # of the chunk
    seen,  # [R] first block, [R] one past the last
    num_blocks,
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    SUM_ROWS: tl.constexpr,
):
    HQ, H = q[3], k_cmp[3]
    k_cmp = (k_cmp[0], H * D, D, H)  # strides that are partly known cost fewer registers
    importance, highest, _, max_blocks, max_groups = out
    row_begin, row_end = seen
    i_n, i_tile, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row, num_rows = tile_rows(tiles, first_tile + i_tile, BLOCK_M)
    if num_rows == 0:
        return
    begin = tl.load(row_begin + first_row)
    end = tl.load(row_end + first_row + num_rows - 1)
    start = begin + i_n * BLOCK_N
    if start >= end:
        return
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, triton.next_power_of_2(D))
    m_row = o_m < num_rows
    m_c = o_n < num_blocks - start
    b_k = load_head(k_cmp, k_tma, start, i_h, o_n, m_c, o_d, D)
    b_p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    p_lse = lse_cmp + first_row.to(tl.int64) * HQ + i_h * G
    for i_g in range(G):
        i_hq = i_h * G + i_g
        b_q = load_head(q, q_tma, first_row, i_hq, o_m, m_row, o_d, D)
        # [BLOCK_M]; +inf where the row sees no block, so that its probabilities are 0
        b_lse = tl.load(p_lse + i_g + o_m * HQ, mask=m_row, other=float("inf"))
        b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse) * 1.4426950408889634
        b_p += tl.exp2(scores(b_q, b_k) * scale_log2 - b_lse[:, None])
    if SUM_ROWS:
        o_row, m_out = tl.full([1], i_tile, tl.int64), tl.full([1], 1, tl.int1)
        b_seen = tl.full([1], end - begin, tl.int32)
    else:
        o_row, m_out = i_tile.to(tl.int64) * BLOCK_M + o_m, m_row
        b_seen = tl.load(row_end + first_row + o_m, mask=m_row, other=0) - begin
    o_out = o_row * H + i_h
    p_out, p_highest = importance + o_out * max_blocks, highest + o_out * max_groups
    if SUM_ROWS:
        # A descriptor also reads rows that are not of this block.
        b_p = tl.sum(tl.where(m_row[:, None], b_p, 0.0), 0)[None, :]
    o_local = i_n * BLOCK_N + o_n
    m_in = m_out[:, None] & (o_local < max_blocks)[None, :]
    tl.store(p_out[:, None] + o_local[None, :], b_p, mask=m_in)
    if GROUP > 1:  # the highest of each group of neighbouring blocks that is seen
        b_p = tl.where(o_local[None, :] < b_seen[:, None], b_p, -1.0)
        b_p = tl.max(tl.reshape(b_p, [b_p.shape[0], BLOCK_N // GROUP, GROUP]), 2)
        o_group = i_n * (BLOCK_N // GROUP) + tl.arange(0, BLOCK_N // GROUP)
        m_in = m_out[:, None] & (o_group < max_groups)[None, :]
        tl.store(p_highest[:, None] + o_group[None, :], b_p, mask=m_in)


@triton.jit
def _best(b_rank, m_taken, NUM_SELECTED: tl.constexpr, ROWS: tl.constexpr):
    """The taken and the highest ranks, NUM_SELECTED in each row; ties to the lower column.

    b_rank [ROWS, N] int32, negative for no candidate, as for those taken -> bool [ROWS, N].
    """
    b_want = NUM_SELECTED - tl.sum(m_taken.to(tl.int32), 1)
    b_want = tl.minimum(b_want, tl.sum((b_rank >= 0).to(tl.int32), 1))
    # The highest rank that at least `b_want` candidates reach, by bisection over the bits.
    b_low = tl.min(tl.where(b_rank >= 0, b_rank, 2147483647), 1)
    b_low = tl.where(b_want > 0, b_low, 0)
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
    return m_taken | ((m_above | m_equal) & (b_want > 0)[:, None])


@triton.jit
def _store_compact(p_row, m_best, b_value, m_row, N: tl.constexpr, ROWS: tl.constexpr):
    """The marked values of each row in the order of the columns, then -1 up to N."""
    P2: tl.constexpr = triton.next_power_of_2(N)
    b_slot = tl.cumsum(m_best.to(tl.int32), 1)
    tl.store(p_row + b_slot - 1, b_value, mask=m_best)
    o_s = tl.arange(0, P2)
    b_total = tl.sum(m_best.to(tl.int32), 1)
    m_none = m_row[:, None] & (o_s[None, :] >= b_total[:, None]) & (o_s[None, :] < N)
    tl.store(p_row + o_s[None, :], tl.full([ROWS, P2], -1, tl.int32), mask=m_none)


@triton.jit(do_not_specialize=["first_tile"])
def _top_groups_kernel(
    scores,  # buffers of `Scores`; its groups are written
    candidates,  # as for `top_blocks`
    tiles,  # runs of `Tiles`
    first_tile,  # of the chunk
    H,
    GROUP: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    NUM_INIT: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The n groups of neighbouring blocks that hold the n best blocks and all that are forced."""
    _, highest, groups, _, max_groups = scores
    begin_of, end_of, current_of = candidates
    i_r, i_h = tl.program_id(0) * ROWS, tl.program_id(1)
    i_tile, in_tile = i_r // TILE, i_r % TILE
    first_row, num_rows = tile_rows(tiles, first_tile + i_tile, TILE)
    if in_tile >= num_rows:
        return
    o_r, o_c = tl.arange(0, ROWS), tl.arange(0, BLOCK_C)
    m_row = in_tile + o_r < num_rows
    o_row = first_row + in_tile + o_r
    b_begin = tl.load(begin_of + o_row, mask=m_row, other=0)
    b_num = tl.load(end_of + o_row, mask=m_row, other=0) - b_begin
    b_current = tl.load(current_of + o_row, mask=m_row, other=0) - b_begin
    o_out = (i_r + o_r).to(tl.int64)[:, None] * H + i_h
    m_seen = m_row[:, None] & (o_c[None, :] * GROUP < b_num[:, None])
    b_rank = tl.load(highest + o_out * max_groups + o_c[None, :], mask=m_seen, other=-1.0)
    b_rank = b_rank.to(tl.int32, bitcast=True)
    m_taken = o_c[None, :] * GROUP < tl.minimum(b_current, NUM_INIT)[:, None]
    b_local = tl.maximum(b_current - NUM_LOCAL, 0)
    m_local = (o_c[None, :] >= (b_local // GROUP)[:, None]) & (
        o_c[None, :] * GROUP <= b_current[:, None]
    )
    m_taken = m_row[:, None] & (m_taken | m_local)
    b_rank = tl.where(m_taken, -1, b_rank)
    m_best = _best(b_rank, m_taken, NUM_SELECTED, ROWS)
    b_group = o_c[None, :] + tl.zeros([ROWS, 1], tl.int32)
    _store_compact(groups + o_out * NUM_SELECTED, m_best, b_group, m_row, NUM_SELECTED, ROWS)


@triton.jit(do_not_specialize=["first_tile"])
def _top_blocks_kernel(
    scores,  # buffers of `Scores`
    candidates,  # as for `top_blocks`
    tiles,  # runs of `Tiles`
    first_tile,  # of the chunk
    H,
    selected,  # [rows, H, n] int32
    GROUP: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    NUM_INIT: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    importance, _, groups, max_blocks, _ = scores
    begin_of, end_of, current_of = candidates
    i_r, i_h = tl.program_id(0) * ROWS, tl.program_id(1)
    i_tile, in_tile = i_r // TILE, i_r % TILE
    first_row, num_rows = tile_rows(tiles, first_tile + i_tile, TILE)
    if in_tile >= num_rows:
        return
    o_r, o_c = tl.arange(0, ROWS), tl.arange(0, BLOCK_C)
    m_row = in_tile + o_r < num_rows
    o_row = first_row + in_tile + o_r
    b_begin = tl.load(begin_of + o_row, mask=m_row, other=0)
    b_num = tl.load(end_of + o_row, mask=m_row, other=0) - b_begin
    b_current = tl.load(current_of + o_row, mask=m_row, other=0) - b_begin
    o_in = (i_r + o_r).to(tl.int64)[:, None] * H + i_h
    if GROUP > 1:
        o_slot = o_c // GROUP
        p_group = groups + o_in * NUM_SELECTED + o_slot[None, :]
        b_c = tl.load(p_group, mask=m_row[:, None] & (o_slot < NUM_SELECTED)[None, :], other=-1)
        b_c = tl.where(b_c >= 0, b_c * GROUP + (o_c % GROUP)[None, :], 2147483647)
    else:
        b_c = o_c[None, :] + tl.zeros([ROWS, 1], tl.int32)
    m_seen = m_row[:, None] & (b_c < b_num[:, None])
    # Probabilities are not negative, so their bits rank as they do; -1 is no candidate.
    b_rank = tl.load(importance + o_in * max_blocks + b_c, mask=m_seen, other=-1.0)
    b_rank = b_rank.to(tl.int32, bitcast=True)
    m_taken = (b_c < NUM_INIT) | (b_c >= b_current[:, None] - NUM_LOCAL)
    m_taken = m_row[:, None] & (m_taken | (b_c == b_current[:, None])) & (b_c <= b_current[:, None])
    b_rank = tl.where(m_taken, -1, b_rank)
    m_best = _best(b_rank, m_taken, NUM_SELECTED, ROWS)
    p_out = selected + (o_row.to(tl.int64)[:, None] * H + i_h) * NUM_SELECTED
    _store_compact(p_out, m_best, b_begin[:, None] + b_c, m_row, NUM_SELECTED, ROWS)


class Scores(NamedTuple):
    """Buffers of one chunk of rows, used again by every chunk."""

    importance: Tensor  # [rows, H, max_blocks] float32
    highest: Tensor  # [rows, H, max_groups] float32: of each group of neighbouring blocks
    groups: Tensor  # [rows, H, n] int32: those that hold the best blocks
    group: int
    """Blocks of a group; 1: the blocks are few enough to be ranked at once."""

    @property
    def buffers(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """One argument of a kernel: the buffers, max_blocks and max_groups."""
        return *self[:3], self.importance.shape[-1], self.highest.shape[-1]


def score_buffers(
    num_rows: int, num_kv_heads: int, *, max_blocks: int, num_selected: int, device: torch.device
) -> Scores:
    """Buffers for chunks of `num_rows` rows."""
    group = 1
    if max_blocks > MAX_RANKED:
        # Two rankings, of max_blocks / group and of n * group values: equal at the root.
        group = triton.next_power_of_2(math.isqrt(max_blocks // num_selected))
        group = min(max(group, 2), 32)
    max_groups = -(-max_blocks // group)

    def buffer(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((num_rows, num_kv_heads, width), dtype=dtype, device=device)

    return Scores(
        importance=buffer(max_blocks, torch.float32),
        highest=buffer(max_groups if group > 1 else 0, torch.float32),
        groups=buffer(num_selected if group > 1 else 0, torch.int32),
        group=group,
    )


def importance(
    q: Tensor,
    k_cmp: Tensor,
    lse_cmp: Tensor,
    seen: tuple[Tensor, Tensor],
    tiles: Tiles,
    chunk: range,
    out: Scores,
    *,
    sum_rows: bool,
    config: Config,
) -> None:
    """Writes the compressed probabilities summed over the heads of a group, or rows too.

    `out` holds the rows of the `chunk` of tiles: `block_m` a tile, or one with `sum_rows`. Column c
    is the c-th block of the tile's sample. Columns that no row of the tile sees are not written.
    """
    _, num_heads, dim = q.shape
    num_blocks, num_kv_heads, _ = k_cmp.shape
    sources = (q, config.block_m), (k_cmp, config.block_n)
    num_parts = triton.cdiv(out.importance.shape[-1], config.block_n)
    launcher(_importance_kernel, q)[(num_parts, len(chunk), num_kv_heads)](
        heads(q),
        heads(k_cmp),
        *descriptors(*sources, tma=config.tma),
        lse_cmp,
        out.buffers,
        tiles.runs,
        chunk.start,
        seen,
        num_blocks,
        dim**-0.5 * LOG2_E,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        GROUP=out.group,
        SUM_ROWS=sum_rows,
        **config.launch,
    )


def top_blocks(
    scores: Scores,
    selected: Tensor,
    tiles: Tiles,
    chunk: range,
    candidates: tuple[Tensor, Tensor, Tensor],
    *,
    num_init: int,
    num_local: int,
) -> None:
    """Writes the selection of the rows of some tiles: flat block numbers, ascending, then -1.

    Args:
        scores: the rows of the chunk, as `importance` writes them.
        selected: `[R, H, n]` int32, written.
        tiles: of all rows.
        chunk: the tiles to rank.
        candidates: each `[R]`: first block of the row's sample, one past the last candidate, and
            the current block, which is always taken.
        num_init: first blocks that are always taken, as far as they lie before the current.
        num_local: blocks just before the current that are always taken.
    """
    num_kv_heads, num_selected = selected.shape[1:]
    _, _, _, max_blocks, max_groups = buffers = scores.buffers
    shared = {
        "GROUP": scores.group,
        "NUM_SELECTED": num_selected,
        "NUM_INIT": num_init,
        "NUM_LOCAL": num_local,
        "TILE": tiles.size,
    }
    arguments = (buffers, candidates, tiles.runs, chunk.start, num_kv_heads)

    def shape(width: int) -> tuple[tuple[int, int], dict[str, int]]:
        block_c = max(32, triton.next_power_of_2(width))
        # A program of one warp needs no barrier in the bisection.
        num_warps = min(32, max(1, block_c // 1024))
        rows = max(1, min(tiles.size, RANKED_AT_ONCE // block_c))
        grid = (len(chunk) * tiles.size // rows, num_kv_heads)
        return grid, {"ROWS": rows, "BLOCK_C": block_c, "num_warps": num_warps}

    if scores.group > 1:
        grid, sizes = shape(max_groups)
        launcher(_top_groups_kernel, selected)[grid](*arguments, **shared, **sizes)
        grid, sizes = shape(triton.next_power_of_2(num_selected) * scores.group)
    else:
        grid, sizes = shape(max_blocks)
    launcher(_top_blocks_kernel, selected)[grid](*arguments, selected, **shared, **sizes)
