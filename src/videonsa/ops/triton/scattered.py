"""The selected (row, block) pairs that neighbouring rows do not share: keys outside, rows gathered.

For every block, the rows left to it are listed and attend to it in full tiles; each pair leaves a
normalised partial output and its LSE in a buffer, and a second kernel merges the partials of a row
with what `selected` made of the shared blocks. K and V are read once a block instead of once a row.
Rows go through in chunks whose partials fit the buffer. The order of a list is left to atomics: no
result depends on it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import LOG2_E, load_rows, scores, store_rows
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.selected import Plan
from videonsa.ops.triton.tuning import Config

ITEM_TILES = 8
"""Tiles of rows for which a program loads the keys of a block once."""


@triton.jit
def _list_kernel(
    scattered,  # [R, H, n] blocks
    num_scattered,  # [R, H]
    tiles,  # [tiles, 2], those of the chunk
    cursor,  # [H, C] counts, or (FILL) the next free place of each list
    pairs,  # [rows of the chunk * H * n] (row in the chunk) * n + slot, one list a block
    num_blocks,
    H,
    NUM_SELECTED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    FILL: tl.constexpr,
):
    i_tile, i_h = tl.program_id(0), tl.program_id(1)
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    o_t, o_s = tl.arange(0, TILE), tl.arange(0, BLOCK_S)
    o_row = (first_row + o_t).to(tl.int64) * H + i_h
    b_num = tl.load(num_scattered + o_row, mask=o_t < num_rows, other=0)
    if tl.max(b_num, 0) == 0:
        return
    m_pair = o_s[None, :] < b_num[:, None]
    b_c = tl.load(scattered + o_row[:, None] * NUM_SELECTED + o_s[None, :], mask=m_pair, other=0)
    b_place = tl.atomic_add(cursor + i_h * num_blocks + b_c, 1, mask=m_pair, sem="relaxed")
    if FILL:
        in_chunk = first_row - tl.load(tiles) + o_t
        tl.store(pairs + b_place, in_chunk[:, None] * NUM_SELECTED + o_s[None, :], mask=m_pair)


@triton.jit
def _items_kernel(
    counts,  # [H * C]
    cursor,  # [H * C] where each list starts
    items,  # [bound, 3] list, first pair, pairs
    num_items,  # [1]
    num_lists,
    ITEM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_l = tl.arange(0, BLOCK)
    pair_base, item_base = 0, 0
    for start in range(0, num_lists, BLOCK):
        m_l = start + o_l < num_lists
        b_count = tl.load(counts + start + o_l, mask=m_l, other=0)
        b_first = pair_base + tl.cumsum(b_count, 0) - b_count
        tl.store(cursor + start + o_l, b_first, mask=m_l)
        b_items = (b_count + ITEM - 1) // ITEM
        b_item = item_base + tl.cumsum(b_items, 0) - b_items
        for i in range(tl.max(b_items, 0)):
            p_item = items + (b_item + i) * 3
            tl.store(p_item, start + o_l, mask=i < b_items)
            tl.store(p_item + 1, b_first + i * ITEM, mask=i < b_items)
            tl.store(p_item + 2, tl.minimum(b_count - i * ITEM, ITEM), mask=i < b_items)
        pair_base += tl.sum(b_count, 0)
        item_base += tl.sum(b_items, 0)
    tl.store(num_items, item_base)


@triton.jit
def _partial_kernel(
    q,  # [R, HQ, D]
    k,  # [S, H, D]
    v,  # [S, H, D]
    partial,  # [rows of the chunk, H, n, G, D]
    partial_lse,  # [rows of the chunk, H, n, G] base 2
    tiles,  # [tiles, 2], those of the chunk
    pairs,
    items,  # [bound, 3]
    num_items,  # [1]
    block_start,  # [C]
    block_size,  # [C]
    num_blocks,
    stride_qr,
    stride_qh,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    scale_log2,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HALVES: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile: tl.constexpr = BLOCK_M // G
    half: tl.constexpr = BLOCK_D // HALVES
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_h = tl.arange(0, half)
    o_t, o_g = o_m // G, o_m % G
    p_chunk = q + tl.load(tiles).to(tl.int64) * stride_qr
    for i_item in range(tl.program_id(0), tl.load(num_items), tl.num_programs(0)):
        i_list = tl.load(items + i_item * 3)
        first, num_pairs = tl.load(items + i_item * 3 + 1), tl.load(items + i_item * 3 + 2)
        i_h, i_c = i_list // num_blocks, i_list % num_blocks
        m_n = o_n < tl.load(block_size + i_c)
        start_key = tl.load(block_start + i_c).to(tl.int64)
        p_k = k + start_key * stride_ks + i_h * stride_kh
        p_v = v + start_key * stride_vs + i_h * stride_vh + o_n[:, None] * stride_vs + o_h[None, :]
        b_k = load_rows(p_k + (o_n[:, None] * stride_ks + o_d[None, :]), m_n, o_d, D, BLOCK_D)
        b_v = load_rows(p_v, m_n, o_h, D, half)
        if HALVES == 2:
            b_w = load_rows(p_v + half, m_n, half + o_h, D, half)
        for start in range(0, num_pairs, tile):
            m_row = (o_t < tile) & (start + o_t < num_pairs)
            b_pair = tl.load(pairs + first + start + o_t, mask=m_row, other=0)
            o_q = (b_pair // NUM_SELECTED) * stride_qr + (i_h * G + o_g) * stride_qh
            b_q = load_rows(p_chunk + (o_q[:, None] + o_d[None, :]), m_row, o_d, D, BLOCK_D)
            b_s = scores(b_q, b_k, PRECISION)
            if not FULL_BLOCKS:
                b_s = tl.where(m_n[None, :], b_s, float("-inf"))
            b_m = tl.max(b_s, 1) * scale_log2
            b_p = tl.exp2(b_s * scale_log2 - b_m[:, None])
            b_l = tl.sum(b_p, 1)
            b_p = b_p.to(b_v.dtype)
            # (row, head, slot) -> [row, H, n, G]
            slot = b_pair % NUM_SELECTED + (b_pair // NUM_SELECTED * H + i_h) * NUM_SELECTED
            o_out = slot * G + o_g
            tl.store(partial_lse + o_out, b_m + tl.log2(b_l), mask=m_row)
            p_out = partial + (o_out[:, None] * D + o_h[None, :])
            b_o = tl.dot(b_p, b_v, input_precision=PRECISION) / b_l[:, None]
            store_rows(p_out, b_o, m_row, o_h, D, half)
            if HALVES == 2:
                b_o = tl.dot(b_p, b_w, input_precision=PRECISION) / b_l[:, None]
                store_rows(p_out + half, b_o, m_row, half + o_h, D, half)


@triton.jit
def _merge_kernel(
    partial,  # [rows of the chunk, H, n, G, D]
    partial_lse,  # [rows of the chunk, H, n, G] base 2
    num_scattered,  # [R, H]
    o_slc,  # [R, HQ, D], holds the shared blocks, gets all
    lse_slc,  # [R, HQ], likewise
    tiles,  # [tiles, 2], those of the chunk
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STEP: tl.constexpr,
):
    i_tile, i_t, i_h = tl.program_id(0) // TILE, tl.program_id(0) % TILE, tl.program_id(1)
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    if i_t >= num_rows:
        return
    o_row = (first_row + i_t).to(tl.int64) * H + i_h
    num = tl.load(num_scattered + o_row)
    if num == 0:
        return
    o_g, o_s, o_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    m_g = o_g < G
    slots = ((first_row + i_t - tl.load(tiles)) * H + i_h) * NUM_SELECTED
    p_lse = partial_lse + slots * G + o_g
    b_lse = tl.load(lse_slc + o_row * G + o_g, mask=m_g, other=float("-inf")) * 1.4426950408889634
    m_part = (o_s < num)[:, None] & m_g[None, :]
    b_part = tl.load(p_lse[None, :] + o_s[:, None] * G, mask=m_part, other=float("-inf"))
    b_m = tl.maximum(tl.max(b_part, 0), b_lse)
    b_m = tl.where(m_g, b_m, 0.0)
    b_w = tl.exp2(b_lse - b_m)
    b_l = b_w + tl.sum(tl.exp2(b_part - b_m[None, :]), 0)
    p_o = o_slc + o_row * G * D + (o_g[:, None] * D + o_d[None, :])
    b_o = load_rows(p_o, m_g, o_d, D, BLOCK_D).to(tl.float32) * b_w[:, None]
    p_part = partial + slots.to(tl.int64) * G * D + (o_g[:, None] * D + o_d[None, :])
    for start in range(0, num, STEP):
        for i in tl.static_range(STEP):
            m_x = m_g & (start + i < num)
            b_x = load_rows(p_part + (start + i) * G * D, m_x, o_d, D, BLOCK_D)
            b_w = tl.load(p_lse + (start + i) * G, mask=m_x, other=float("-inf"))
            b_o += b_x.to(tl.float32) * tl.exp2(b_w - b_m)[:, None]
    b_o = b_o / tl.where(m_g, b_l, 1.0)[:, None]
    store_rows(p_o, b_o, m_g, o_d, D, BLOCK_D)
    b_lse = (b_m + tl.log2(tl.where(m_g, b_l, 1.0))) * 0.6931471805599453
    tl.store(lse_slc + o_row * G + o_g, b_lse, mask=m_g)


class Workspace(NamedTuple):
    """Buffers of one chunk of row tiles, used again by every chunk."""

    partial: Tensor  # [rows, H, n, G, D]
    partial_lse: Tensor  # [rows, H, n, G]
    counts: Tensor  # [H, C]
    cursor: Tensor  # [H, C]
    pairs: Tensor  # [rows * H * n]
    items: Tensor  # [bound, 3]
    num_items: Tensor  # [1]


def workspace(
    q: Tensor, *, num_rows: int, num_kv_heads: int, num_blocks: int, num_selected: int, item: int
) -> Workspace:
    """Buffers for chunks of `num_rows` rows; `item` is the most pairs of an item."""
    num_heads, dim = q.shape[1:]
    pairs = num_rows * num_kv_heads * num_selected
    lists = num_kv_heads * num_blocks
    group = num_heads // num_kv_heads

    def ints(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=q.device)

    return Workspace(
        partial=q.new_empty(pairs * group * dim),
        partial_lse=torch.empty(pairs * group, dtype=torch.float32, device=q.device),
        counts=ints(lists),
        cursor=ints(lists),
        pairs=ints(pairs),
        items=ints(pairs // item + min(lists, pairs), 3),
        num_items=ints(1),
    )


def add_scattered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o_slc: Tensor,
    lse_slc: Tensor,
    tiles: Tensor,
    plan: Plan,
    index: StreamIndex,
    space: Workspace,
    *,
    tile: int,
    full_blocks: bool,
    num_programs: int,
    config: Config,
) -> None:
    """Merges the scattered pairs of one chunk of tiles of `tile` rows into o_slc and its LSE.

    `full_blocks`: every block has `config.block_n` tokens.
    """
    num_heads, num_kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    group, num_selected = num_heads // num_kv_heads, plan.scattered.shape[2]
    space.counts.zero_()
    _list(plan, tiles, space.counts, space, tile=tile, fill=False)
    _items_kernel[(1,)](
        space.counts,
        space.cursor,
        space.items,
        space.num_items,
        len(space.counts),
        ITEM=config.block_m // group * ITEM_TILES,
        BLOCK=2048,
        num_warps=16,
    )
    _list(plan, tiles, space.cursor, space, tile=tile, fill=True)
    _partial_kernel[(min(num_programs, len(space.items)),)](
        q,
        k,
        v,
        space.partial,
        space.partial_lse,
        tiles,
        space.pairs,
        space.items,
        space.num_items,
        index.block_start,
        index.block_size,
        len(index.block_start),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        dim**-0.5 * LOG2_E,
        num_kv_heads,
        G=group,
        D=dim,
        NUM_SELECTED=num_selected,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        HALVES=2 if dim > 64 and config.halves else 1,
        FULL_BLOCKS=full_blocks,
        PRECISION=config.precision,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.maxnreg,
    )
    _merge_kernel[(len(tiles) * tile, num_kv_heads)](
        space.partial,
        space.partial_lse,
        plan.num_scattered,
        o_slc,
        lse_slc,
        tiles,
        num_kv_heads,
        G=group,
        D=dim,
        NUM_SELECTED=num_selected,
        TILE=tile,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_G=triton.next_power_of_2(group),
        BLOCK_S=triton.next_power_of_2(num_selected),
        STEP=MERGE[0],
        num_warps=MERGE[1],
    )


MERGE=[4,4]


def _list(
    plan: Plan, tiles: Tensor, cursor: Tensor, space: Workspace, *, tile: int, fill: bool
) -> None:
    num_kv_heads, num_selected = plan.scattered.shape[1:]
    _list_kernel[(len(tiles), num_kv_heads)](
        plan.scattered,
        plan.num_scattered,
        tiles,
        cursor,
        space.pairs,
        len(cursor) // num_kv_heads,
        num_kv_heads,
        NUM_SELECTED=num_selected,
        TILE=tile,
        BLOCK_S=triton.next_power_of_2(num_selected),
        FILL=fill,
        num_warps=4,
    )
