"""The lists of the scattered pairs: for every chunk and block, the rows that are left to it."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import launcher, tile_rows
from videonsa.ops.triton.index import Tiles
from videonsa.ops.triton.selected import Plan

CHUNKS_PER_PASS = 16
"""Chunks whose lists are made at once."""


@triton.jit(do_not_specialize=["first_chunk", "num_chunks", "capacity", "region"])
def _list_kernel(
    scattered,  # pairs of `Plan`
    units,  # of `Lists`; where chunks begin is written
    tiles,  # runs of `Tiles`
    cursor,  # [chunks of a pass, H, C] counts, or (FILL) the next free place of each list
    pairs,  # [chunks of a pass, region, 2] row, and place of its partial output
    num_blocks,
    H,
    first_chunk,
    num_chunks,
    capacity,
    region,
    NUM_SELECTED: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    FILL: tl.constexpr,
):
    scattered, num_scattered, first_pair, tile_pairs = scattered
    pair_end, chunk_units = units
    i_tile, i_h = tl.program_id(0), tl.program_id(1)
    i_unit = i_tile * H + i_h
    num_pairs = tl.load(tile_pairs + i_unit)
    base = tl.load(pair_end + i_unit) - num_pairs
    own_chunk = base // capacity
    if not FILL:  # where a chunk begins: the first unit whose pairs lie in it
        last = -1
        if i_unit > 0:
            last = (base - tl.load(tile_pairs + i_unit - 1)) // capacity
        for i in range(last + 1, own_chunk + 1):
            tl.store(chunk_units + i, i_unit)
        if i_unit == tl.num_programs(0) * H - 1:
            for i in range(own_chunk + 1, num_chunks + 1):
                tl.store(chunk_units + i, i_unit + 1)
    chunk = own_chunk - first_chunk
    if (chunk < 0) | (chunk >= CHUNKS) | (num_pairs == 0):
        return
    first_row, num_rows = tile_rows(tiles, i_tile, TILE)
    o_t, o_s = tl.arange(0, TILE), tl.arange(0, triton.next_power_of_2(NUM_SELECTED))
    o_row = (first_row + o_t).to(tl.int64) * H + i_h
    b_num = tl.load(num_scattered + o_row, mask=o_t < num_rows, other=0)
    m_pair = o_s[None, :] < b_num[:, None]
    b_c = tl.load(scattered + o_row[:, None] * NUM_SELECTED + o_s[None, :], mask=m_pair, other=0)
    p_cursor = cursor + (chunk * H + i_h) * num_blocks + b_c
    b_place = tl.atomic_add(p_cursor, 1, mask=m_pair, sem="relaxed")
    if FILL:
        b_first = tl.load(first_pair + o_row, mask=o_t < num_rows, other=0)
        b_partial = base % capacity + b_first[:, None] + o_s[None, :]
        p_pair = pairs + 2 * (chunk.to(tl.int64) * region + b_place)
        tl.store(p_pair, (first_row + o_t)[:, None] + o_s[None, :] * 0, mask=m_pair)
        tl.store(p_pair + 1, b_partial, mask=m_pair)


@triton.jit(do_not_specialize=["max_items"])
def _items_kernel(
    counts,  # [chunks, lists]
    totals,  # [chunks, 2] pairs and items so far, 0 at the start
    cursor,  # [chunks, lists] where each list starts among the pairs of the chunk
    items,  # [chunks, max_items, 3] list, first pair, pairs
    num_lists,
    max_items,
    ITEM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_chunk = tl.program_id(1)
    o_l = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_l = o_l < num_lists
    b_count = tl.load(counts + i_chunk * num_lists + o_l, mask=m_l, other=0)
    num_pairs = tl.sum(b_count, 0)
    if num_pairs == 0:
        return
    b_items = (b_count + ITEM - 1) // ITEM
    first_pair = tl.atomic_add(totals + 2 * i_chunk, num_pairs, sem="relaxed")
    first_item = tl.atomic_add(totals + 2 * i_chunk + 1, tl.sum(b_items, 0), sem="relaxed")
    b_first = first_pair + tl.cumsum(b_count, 0) - b_count
    tl.store(cursor + i_chunk * num_lists + o_l, b_first, mask=m_l)
    b_item = first_item + tl.cumsum(b_items, 0) - b_items
    for i in range(tl.max(b_items, 0)):
        p_item = items + (i_chunk.to(tl.int64) * max_items + b_item + i) * 3
        tl.store(p_item, o_l, mask=i < b_items)
        tl.store(p_item + 1, b_first + i * ITEM, mask=i < b_items)
        tl.store(p_item + 2, tl.minimum(b_count - i * ITEM, ITEM), mask=i < b_items)


class Lists(NamedTuple):
    """Buffers of the lists of one pass over several chunks; all int32."""

    num_chunks: int
    chunks: int
    """Chunks of a pass."""
    capacity: int
    """A chunk holds the (tile, head)s whose first pair lies in [i, i + 1) * capacity."""
    region: int
    """Most pairs of a chunk."""
    max_items: int
    """Most items of a chunk."""
    item: int
    """Most pairs of an item."""
    pair_end: Tensor  # [tiles * H]
    chunk_units: Tensor  # [num_chunks + 1]
    counts: Tensor  # [chunks * lists + chunks * 2] counts, then the totals
    totals: Tensor  # [chunks * 2] pairs and items of each chunk
    cursor: Tensor  # [chunks * lists]
    pairs: Tensor  # [chunks, region, 2] row, place of the partial output
    items: Tensor  # [chunks, max_items, 3] list, first pair, pairs

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """One argument of a kernel: pair_end, and the first (tile, head) of each chunk."""
        return self.pair_end, self.chunk_units

    @property
    def work(self) -> tuple[Tensor, Tensor, Tensor]:
        """One argument of a kernel: pairs, items and totals."""
        return self.pairs, self.items, self.totals


def list_buffers(plan: Plan, tiles: Tiles, *, num_blocks: int, capacity: int, item: int) -> Lists:
    """Buffers for the pairs of `plan` in chunks of `capacity`; sizes come from shapes alone."""
    num_rows, num_kv_heads, num_selected = plan.scattered.shape
    most = num_rows * num_kv_heads * num_selected
    num_chunks = -(-most // capacity)
    chunks = min(CHUNKS_PER_PASS, num_chunks)
    num_lists = num_kv_heads * num_blocks
    region = min(most, capacity + tiles.size * num_selected)
    max_items = region // item + min(num_lists, region)

    def ints(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, device=plan.scattered.device)

    counts = ints(chunks * (num_lists + 2))
    return Lists(
        num_chunks=num_chunks,
        chunks=chunks,
        capacity=capacity,
        region=region,
        max_items=max_items,
        item=item,
        pair_end=plan.tile_pairs.flatten().cumsum(0, dtype=torch.int32),
        chunk_units=ints(num_chunks + 1),
        counts=counts,
        totals=counts[chunks * num_lists :],
        cursor=ints(chunks * num_lists),
        pairs=ints(chunks * region * 2),
        items=ints(chunks * max_items * 3),
    )


def make_lists(plan: Plan, tiles: Tiles, lists: Lists, *, first_chunk: int) -> None:
    """Fills the lists of the pass that begins with `first_chunk`."""
    _, num_kv_heads, num_selected = plan.scattered.shape
    num_lists = len(lists.cursor) // lists.chunks
    lists.counts.zero_()
    for fill in (False, True):
        launcher(_list_kernel, plan.start)[(tiles.num, num_kv_heads)](
            plan.pairs,
            lists.units,
            tiles.runs,
            lists.cursor if fill else lists.counts,
            lists.pairs,
            num_lists // num_kv_heads,
            num_kv_heads,
            first_chunk,
            lists.num_chunks,
            lists.capacity,
            lists.region,
            NUM_SELECTED=num_selected,
            CHUNKS=lists.chunks,
            TILE=tiles.size,
            FILL=fill,
            num_warps=4,
        )
        if not fill:
            launcher(_items_kernel, plan.start)[(triton.cdiv(num_lists, 256), lists.chunks)](
                lists.counts,
                lists.totals,
                lists.cursor,
                lists.items,
                num_lists,
                lists.max_items,
                ITEM=lists.item,
                BLOCK=256,
                num_warps=1,
            )
