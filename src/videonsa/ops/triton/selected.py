"""The selected branch over the blocks that neighbouring rows share.

A tile of rows with all heads of a group walks every block that enough of its rows chose, once, with
a bit for each row. The (row, block) pairs that are left go to `scattered`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    Keys,
    descriptors,
    heads,
    launcher,
    load_finite_head,
    load_group,
    load_head,
    scores,
    softmax_end,
    softmax_step,
    softmax_step_of_rows,
    store_rows,
    tile_rows,
)
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.tuning import Config


class Plan(NamedTuple):
    """Which blocks a tile of rows walks together, and which pairs are scattered; all int32."""

    start: Tensor  # [tiles, H, bound] first key of each shared block
    size: Tensor  # [tiles, H, bound] its tokens
    rows: Tensor  # [tiles, H, bound] one bit for each row that chose it
    num_shared: Tensor  # [tiles, H, 2] shared blocks, and those of which every row may see all
    scattered: Tensor  # [R, H, n] blocks of each row that are not shared
    num_scattered: Tensor  # [R, H]
    pair: Tensor  # [R, H] number of the row's first scattered pair among those of its tile
    tile_pairs: Tensor  # [tiles, H] scattered pairs of a tile

    @property
    def shared(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One argument of a kernel: start, size, rows and num_shared."""
        return self[:4]

    @property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One argument of a kernel: scattered, num_scattered, pair and tile_pairs."""
        return self[4:]


@triton.jit
def _plan_kernel(
    selected,  # [R, H, n] flat blocks, ascending, then -1
    shared,  # of `Plan`, written
    pairs,  # likewise
    tiles,  # runs of `Tiles`
    rows,  # of `StreamIndex`
    blocks,  # likewise
    H,
    num_units,
    NUM_SELECTED: tl.constexpr,
    BOUND: tl.constexpr,
    MIN_SHARED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE: tl.constexpr,
    UNITS: tl.constexpr,
):
    plan_start, plan_size, plan_rows, num_shared = shared
    scattered, num_scattered, first_pair, tile_pairs = pairs
    row_key, row_block, _, row_end = rows
    block_start, block_size, _ = blocks
    none: tl.constexpr = 2147483647
    o_u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)  # a unit is a (tile, KV head)
    m_u = o_u < num_units
    i_tile, i_h = tl.minimum(o_u, num_units - 1) // H, o_u % H
    first_row, num_rows = tile_rows(tiles, i_tile, TILE)
    o_tile = o_u.to(tl.int64)
    o_t = tl.arange(0, TILE)[None, :]
    m_t = m_u[:, None] & (o_t < num_rows[:, None])  # [UNITS, TILE]
    o_row = (first_row[:, None] + o_t).to(tl.int64) * H + i_h[:, None]
    p_row = selected + o_row * NUM_SELECTED
    b_slot = tl.zeros([UNITS, TILE], tl.int32)
    b_left = tl.zeros([UNITS, TILE], tl.int32)
    b_next = tl.load(p_row, mask=m_t, other=-1)
    b_next = tl.where(b_next < 0, none, b_next)
    m_some = m_u & (num_rows > 0)
    current = tl.load(row_block + first_row, mask=m_some, other=0)
    key = tl.load(row_key + first_row, mask=m_some, other=0)
    # How a block is read decides how a row is rounded. So a row whose choice depends on a block
    # that the first row of the tile does not see has no vote.
    first_end = tl.load(row_end + first_row, mask=m_some, other=0)
    b_end = tl.load(row_end + first_row[:, None] + o_t, mask=m_t, other=0)
    m_vote = b_end <= first_end[:, None]
    b_num, b_before = tl.zeros([UNITS], tl.int32), tl.zeros([UNITS], tl.int32)
    block = tl.min(b_next, 1)
    while tl.min(block, 0) != none:  # merge the ascending lists of the rows
        m_hit = (b_next == block[:, None]) & (b_next != none)
        num_hits = tl.sum((m_hit & m_vote).to(tl.int32), 1)
        # Blocks that need the causal mask are always walked together.
        m_shared = (block != none) & ((num_hits >= MIN_SHARED) | (block >= current))
        o_out = o_tile * BOUND + b_num
        start = tl.load(block_start + block, mask=m_shared, other=0)
        tl.store(plan_start + o_out, start, mask=m_shared)
        tl.store(plan_size + o_out, tl.load(block_size + block, mask=m_shared), mask=m_shared)
        tl.store(plan_rows + o_out, tl.sum(m_hit.to(tl.int32) << o_t, 1), mask=m_shared)
        m_left = m_hit & (m_shared == 0)[:, None]
        tl.store(scattered + o_row * NUM_SELECTED + b_left, block[:, None] + o_t * 0, mask=m_left)
        b_left += m_left.to(tl.int32)
        b_num += m_shared.to(tl.int32)
        # A tile of keys may reach beyond its block, to keys behind the first row.
        b_before += (m_shared & (start + BLOCK_N <= key + 1)).to(tl.int32)
        b_slot += m_hit.to(tl.int32)
        b_new = tl.load(p_row + b_slot, mask=m_hit & (b_slot < NUM_SELECTED), other=-1)
        b_next = tl.where(m_hit, tl.where(b_new < 0, none, b_new), b_next)
        block = tl.min(b_next, 1)
    tl.store(num_shared + o_tile * 2, b_num, mask=m_u)
    tl.store(num_shared + o_tile * 2 + 1, b_before, mask=m_u)
    tl.store(num_scattered + o_row, b_left, mask=m_t)
    tl.store(first_pair + o_row, tl.cumsum(b_left, 1) - b_left, mask=m_t)
    tl.store(tile_pairs + o_tile, tl.sum(b_left, 1), mask=m_u)


@triton.jit
def _selected_kernel(
    q,  # heads of [R, HQ, D]
    k,  # heads of [S, H, D]
    v,  # likewise
    poison,  # of `Keys`: [S, H], [1]
    k_tma,  # descriptor of k, or None
    v_tma,
    o_slc,  # [R, HQ, D]
    lse_slc,  # [R, HQ]
    tiles,  # runs of `Tiles`
    shared,  # of `Plan`
    row_key,  # [R]
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BOUND: tl.constexpr,
    TILE: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    POISONED: tl.constexpr,
):
    if (tl.load(poison[1]) != 0) != POISONED:
        return
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    HQ, H = q[3], k[3]
    plan_start, plan_size, plan_rows, num_shared = shared
    i_tile, i_h = tl.num_programs(0) // H - 1 - tl.program_id(0) // H, tl.program_id(0) % H
    first_row, num_rows = tile_rows(tiles, i_tile, TILE)
    if num_rows == 0:
        return
    o_tile = i_tile.to(tl.int64) * H + i_h
    num, num_before = tl.load(num_shared + 2 * o_tile), tl.load(num_shared + 2 * o_tile + 1)
    p_start, p_size = plan_start + o_tile * BOUND, plan_size + o_tile * BOUND
    p_rows = plan_rows + o_tile * BOUND
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, o_g = o_m // G, o_m % G  # token and head of each row of the tile
    m_row = o_t < num_rows
    base = first_row.to(tl.int64)
    b_q = load_group(q, first_row, i_h * G, o_t, o_g, m_row, o_d, D)
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i in range(num_before):  # every row of the tile may see all keys that are read
        start = tl.load(p_start + i)
        m_bit = ((tl.load(p_rows + i) >> o_t) & 1) != 0
        m_n = o_n < BLOCK_N
        if not FULL_BLOCKS:
            m_n = o_n < tl.load(p_size + i)
        b_k = load_head(k, k_tma, start, i_h, o_n, m_n, o_d, D)
        b_v = load_head(v, v_tma, start, i_h, o_n, m_n, o_d, D)
        b_s = scores(b_q, b_k)
        if not FULL_BLOCKS:
            b_s = tl.where(m_n[None, :], b_s, float("-inf"))
        b_acc, b_m, b_l = softmax_step_of_rows(b_s, b_v, b_acc, b_m, b_l, m_bit, scale_log2)
    b_key = tl.load(row_key + first_row + o_t, mask=m_row, other=-1)
    end = tl.load(row_key + first_row) + num_rows  # the keys of a tile's rows are consecutive
    for i in range(num_before, num):
        start = tl.load(p_start + i)
        m_bit = ((tl.load(p_rows + i) >> o_t) & 1) != 0
        m_n = (o_n < tl.load(p_size + i)) & (o_n < end - start)
        b_k = load_head(k, k_tma, start, i_h, o_n, m_n, o_d, D)
        b_s = scores(b_q, b_k)
        if POISONED:
            b_v, b_poison = load_finite_head(v, poison, start, i_h, o_n, m_n, o_d, D)
            b_s += b_poison[None, :]
        else:
            b_v = load_head(v, v_tma, start, i_h, o_n, m_n, o_d, D)
        m_s = m_bit[:, None] & m_n[None, :] & (o_n[None, :] <= (b_key - start)[:, None])
        b_s = tl.where(m_s, b_s, float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    b_o, b_lse = softmax_end(b_acc, b_m, b_l)
    p_o = o_slc + (base * HQ + i_h * G) * D
    o_out = o_t * HQ + o_g
    store_rows(p_o + (o_out[:, None] * D + o_d[None, :]), b_o, m_row, o_d, D)
    tl.store(lse_slc + base * HQ + i_h * G + o_out, b_lse, mask=m_row)


def plan_tiles(
    selected: Tensor, tiles: Tiles, index: StreamIndex, *, min_shared: int, block_n: int
) -> Plan:
    """Shares out the selection `[R, H, n]` (flat blocks, ascending, then -1) of tiles of rows.

    A tile walks a block together where at least `min_shared` of its rows chose it, or where the
    block is not wholly before the tile. Rows that see more blocks than the first one do not count:
    no row is rounded otherwise for a key that it may not see. Blocks are read in tiles of `block_n`
    keys, those that every row may see wholly first.
    """
    num_rows, num_kv_heads, num_selected = selected.shape
    bound = tiles.size * num_selected // min_shared + tiles.size

    def ints(*shape: int) -> Tensor:
        return selected.new_empty(shape)

    units = (tiles.num, num_kv_heads)
    plan = Plan(
        start=ints(*units, bound),
        size=ints(*units, bound),
        rows=ints(*units, bound),
        num_shared=ints(*units, 2),
        scattered=ints(num_rows, num_kv_heads, num_selected),
        num_scattered=ints(num_rows, num_kv_heads),
        pair=ints(num_rows, num_kv_heads),
        tile_pairs=ints(*units),
    )
    # One list of a row for each lane of the one warp.
    per_program = max(1, 32 // tiles.size)
    num_units = tiles.num * num_kv_heads
    launcher(_plan_kernel, selected)[(triton.cdiv(num_units, per_program),)](
        selected,
        plan.shared,
        plan.pairs,
        tiles.runs,
        index.rows,
        index.blocks,
        num_kv_heads,
        num_units,
        NUM_SELECTED=num_selected,
        BOUND=bound,
        MIN_SHARED=min_shared,
        BLOCK_N=block_n,
        TILE=tiles.size,
        UNITS=per_program,
        num_warps=1,
    )
    return plan


def selected_shared(
    q: Tensor,
    keys: Keys,
    tiles: Tiles,
    plan: Plan,
    index: StreamIndex,
    *,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """Attention over the shared blocks of each tile: o `[R, HQ, D]` and LSE `[R, HQ]`."""
    num_rows, num_heads, dim = q.shape
    num_kv_heads = keys.k.shape[1]
    o_slc = torch.empty((num_rows, num_heads, dim), dtype=q.dtype, device=q.device)
    lse_slc = torch.empty((num_rows, num_heads), dtype=torch.float32, device=q.device)
    sources = (keys.k, config.block_n), (keys.v, config.block_n)
    for is_poisoned in (False, True):  # one of the two returns at once
        launcher(_selected_kernel, q)[(tiles.num * num_kv_heads,)](
            heads(q),
            *keys.arguments,
            *descriptors(*sources, tma=config.tma),
            o_slc,
            lse_slc,
            tiles.runs,
            plan.shared,
            index.row_key,
            dim**-0.5 * LOG2_E,
            G=num_heads // num_kv_heads,
            D=dim,
            BLOCK_M=max(16, triton.next_power_of_2(tiles.size * num_heads // num_kv_heads)),
            BLOCK_N=config.block_n,
            BOUND=plan.start.shape[-1],
            TILE=tiles.size,
            FULL_BLOCKS=index.uniform and index.max_size == config.block_n,
            POISONED=is_poisoned,
            **config.launch,
        )
    return o_slc, lse_slc
