"""The selected (row, block) pairs that neighbouring rows do not share: keys outside, rows gathered.

For every block, the rows left to it are listed and attend to it in full tiles; each pair leaves a
normalised partial output and its LSE in a buffer, and a second kernel merges the partials of a row
with what `selected` made of the shared blocks. K and V are read once a block instead of once a row.

Pairs are numbered in the order of the rows, and go through in chunks that fit the buffer: where few
pairs are scattered a chunk spans many rows. Where a chunk begins is known on the device alone; the
host launches as many as there could be. The order of a list is left to atomics: no result depends
on it.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    Keys,
    heads,
    launcher,
    load_rows,
    needs_wide_offsets,
    scores,
    store_rows,
    tile_rows,
)
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.lists import Lists, list_buffers, make_lists
from videonsa.ops.triton.selected import Plan
from videonsa.ops.triton.tuning import Config

ITEM_TILES = 8
"""Tiles of rows for which a program loads the keys of a block once."""
MERGE_PROGRAMS = 32
"""Programs of one warp on each multiprocessor: without barriers they hide the memory best."""


@triton.jit(do_not_specialize=["i_chunk", "region", "max_items"])
def _partial_kernel(
    q,  # heads of [R, HQ, D]
    k,  # heads of [S, H, D]
    v,  # likewise
    partial,  # [pairs of the chunk, G, D]
    partial_lse,  # [pairs of the chunk, G] base 2
    work,  # of `Lists`
    blocks,  # of `StreamIndex`
    i_chunk,  # of the pass
    region,
    max_items,
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HALVES: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):
    q, stride_qr, stride_qh, _ = q
    k, stride_ks, stride_kh, _ = k
    v, stride_vs, stride_vh, _ = v
    pairs, items, totals = work
    block_start, block_size, num_blocks = blocks
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    tile: tl.constexpr = BLOCK_M // G
    half: tl.constexpr = BLOCK_D // HALVES
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_h = tl.arange(0, half)
    o_t, o_g = o_m // G, o_m % G
    p_items = items + i_chunk.to(tl.int64) * max_items * 3
    num_items = tl.load(totals + 2 * i_chunk + 1)
    for i_item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        p_item = p_items + i_item * 3
        i_list, first, num_pairs = tl.load(p_item), tl.load(p_item + 1), tl.load(p_item + 2)
        i_h, i_c = i_list // num_blocks, i_list % num_blocks
        m_n = o_n < tl.load(block_size + i_c)
        start_key = tl.load(block_start + i_c).to(tl.int64)
        p_k = k + start_key * stride_ks + i_h * stride_kh
        p_v = v + start_key * stride_vs + i_h * stride_vh + o_n[:, None] * stride_vs + o_h[None, :]
        b_k = load_rows(p_k + (o_n[:, None] * stride_ks + o_d[None, :]), m_n, o_d, D)
        b_v = load_rows(p_v, m_n, o_h, D)
        if HALVES == 2:
            b_w = load_rows(p_v + half, m_n, half + o_h, D)
        p_pairs = pairs + (i_chunk.to(tl.int64) * region + first) * 2 + o_t * 2
        for start in range(0, num_pairs, tile):
            m_row = (o_t < tile) & (start + o_t < num_pairs)
            b_row = tl.load(p_pairs + start * 2, mask=m_row, other=0)
            o_out = tl.load(p_pairs + start * 2 + 1, mask=m_row, other=0) * G + o_g
            if WIDE:
                b_row = b_row.to(tl.int64)
            o_q = b_row * stride_qr + (i_h * G + o_g) * stride_qh
            b_q = load_rows(q + (o_q[:, None] + o_d[None, :]), m_row, o_d, D)
            b_s = scores(b_q, b_k)
            if not FULL_BLOCKS:
                b_s = tl.where(m_n[None, :], b_s, float("-inf"))
            b_m = tl.max(b_s, 1) * scale_log2
            b_p = tl.exp2(b_s * scale_log2 - b_m[:, None])
            b_l = tl.sum(b_p, 1)
            b_p = (b_p * (1.0 / b_l)[:, None]).to(b_v.dtype)
            tl.store(partial_lse + o_out, b_m + tl.log2(b_l), mask=m_row)
            p_out = partial + (o_out[:, None] * D + o_h[None, :])
            b_o = tl.dot(b_p, b_v, input_precision="ieee")
            store_rows(p_out, b_o, m_row, o_h, D)
            if HALVES == 2:
                b_o = tl.dot(b_p, b_w, input_precision="ieee")
                store_rows(p_out + half, b_o, m_row, half + o_h, D)


@triton.jit(do_not_specialize=["i_chunk", "capacity"])
def _merge_kernel(
    partial,  # [pairs of the chunk, G, D]
    partial_lse,  # [pairs of the chunk, G] base 2
    scattered,  # pairs of `Plan`
    units,  # of `Lists`
    o_slc,  # [R, HQ, D], holds the shared blocks, gets all
    lse_slc,  # [R, HQ], likewise
    tiles,  # runs of `Tiles`
    i_chunk,
    capacity,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    _, num_scattered, first_pair, tile_pairs = scattered
    pair_end, chunk_units = units
    o_g, o_d = tl.arange(0, triton.next_power_of_2(G)), tl.arange(0, triton.next_power_of_2(D))
    o_s = tl.arange(0, triton.next_power_of_2(NUM_SELECTED))
    m_g = o_g < G
    first_unit, stop_unit = tl.load(chunk_units + i_chunk), tl.load(chunk_units + i_chunk + 1)
    num_units = (stop_unit - first_unit) * TILE
    for i in range(tl.program_id(0), num_units, tl.num_programs(0)):
        i_unit, i_t = first_unit + i // TILE, i % TILE
        i_tile, i_h = i_unit // H, i_unit % H
        first_row, num_rows = tile_rows(tiles, i_tile, TILE)
        o_row = (first_row + i_t).to(tl.int64) * H + i_h
        num = tl.load(num_scattered + o_row, mask=i_t < num_rows, other=0)
        if num > 0:
            base = tl.load(pair_end + i_unit) - tl.load(tile_pairs + i_unit)
            pair = base % capacity + tl.load(first_pair + o_row)
            p_lse = partial_lse + pair * G + o_g
            p_own = lse_slc + o_row * G + o_g
            b_lse = tl.load(p_own, mask=m_g, other=float("-inf")) * 1.4426950408889634
            m_part = (o_s < num)[:, None] & m_g[None, :]
            b_part = tl.load(p_lse[None, :] + o_s[:, None] * G, mask=m_part, other=float("-inf"))
            b_m = tl.where(m_g, tl.maximum(tl.max(b_part, 0), b_lse), 0.0)
            b_w = tl.exp2(b_lse - b_m)
            b_l = b_w + tl.sum(tl.exp2(b_part - b_m[None, :]), 0)
            o_gd = o_g[:, None] * D + o_d[None, :]
            p_o = o_slc + o_row * G * D + o_gd
            b_o = load_rows(p_o, m_g, o_d, D).to(tl.float32) * b_w[:, None]
            p_part = partial + (pair * G * D + o_gd)
            for start in range(0, num, STEP):
                for j in tl.static_range(STEP):
                    m_x = m_g & (start + j < num)
                    b_x = load_rows(p_part + (start + j) * G * D, m_x, o_d, D)
                    b_w = tl.load(p_lse + (start + j) * G, mask=m_x, other=float("-inf"))
                    b_o += b_x.to(tl.float32) * tl.exp2(b_w - b_m)[:, None]
            b_l = tl.where(m_g, b_l, 1.0)
            store_rows(p_o, b_o * (1.0 / b_l)[:, None], m_g, o_d, D)
            tl.store(p_own, (b_m + tl.log2(b_l)) * 0.6931471805599453, mask=m_g)


def add_scattered(
    q: Tensor,
    keys: Keys,
    o_slc: Tensor,
    lse_slc: Tensor,
    tiles: Tiles,
    plan: Plan,
    index: StreamIndex,
    *,
    partial_bytes: int,
    num_multiprocessors: int,
    config: Config,
) -> None:
    """Merges the scattered pairs of all tiles into o_slc `[R, HQ, D]` and its LSE `[R, HQ]`.

    Args:
        q: `[R, HQ, D]`.
        keys: of the stream.
        o_slc: attention over the shared blocks; updated.
        lse_slc: its LSE; updated.
        tiles: of at most 32 rows.
        plan: of these tiles.
        index: of these rows and keys.
        partial_bytes: size of the buffer of partial outputs.
        num_multiprocessors: of the GPU.
        config: of the partial kernel.
    """
    group, dim = q.shape[1] // plan.scattered.shape[1], q.shape[2]
    lists = pair_lists(plan, tiles, index, q, partial_bytes=partial_bytes, block_m=config.block_m)
    partial = q.new_empty(lists.region * group * dim)
    partial_lse = q.new_empty(lists.region * group, dtype=torch.float32)
    inputs = (heads(q), *keys.arguments[:2])
    for chunk, i_chunk in chunks(plan, tiles, lists):
        launcher(_partial_kernel, q)[(config.programs * num_multiprocessors,)](
            *inputs,
            partial,
            partial_lse,
            lists.work,
            index.blocks,
            i_chunk,
            lists.region,
            lists.max_items,
            dim**-0.5 * LOG2_E,
            G=group,
            D=dim,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            HALVES=2 if dim > 64 else 1,
            FULL_BLOCKS=index.uniform and index.max_size == config.block_n,
            WIDE=needs_wide_offsets(q),
            **config.launch,
        )
        _merge(
            partial,
            partial_lse,
            o_slc,
            lse_slc,
            tiles,
            plan,
            lists,
            chunk=chunk,
            programs=MERGE_PROGRAMS * num_multiprocessors,
        )


def _merge(
    partial: Tensor,
    partial_lse: Tensor,
    o_slc: Tensor,
    lse_slc: Tensor,
    tiles: Tiles,
    plan: Plan,
    lists: Lists,
    *,
    chunk: int,
    programs: int,
) -> None:
    """Merges what the pairs of a chunk left into the rows of o_slc and lse_slc."""
    num_kv_heads, num_selected = plan.scattered.shape[1:]
    launcher(_merge_kernel, o_slc)[(programs,)](
        partial,
        partial_lse,
        plan.pairs,
        lists.units,
        o_slc,
        lse_slc,
        tiles.runs,
        chunk,
        lists.capacity,
        num_kv_heads,
        G=o_slc.shape[1] // num_kv_heads,
        D=o_slc.shape[2],
        NUM_SELECTED=num_selected,
        TILE=tiles.size,
        STEP=2,
        num_warps=1,
    )


def pair_lists(
    plan: Plan, tiles: Tiles, index: StreamIndex, q: Tensor, *, partial_bytes: int, block_m: int
) -> Lists:
    """Buffers for the scattered pairs, as many a chunk as have room in `partial_bytes`.

    A pair leaves a row of each head of the group, in the dtype of q, and a float32 beside it;
    `block_m` rows of them are a tile.
    """
    num_rows, num_kv_heads, num_selected = plan.scattered.shape
    group, dim = q.shape[1] // num_kv_heads, q.shape[2]
    most = num_rows * num_kv_heads * num_selected
    return list_buffers(
        plan,
        tiles,
        num_blocks=len(index.block_start),
        capacity=max(1, min(most, partial_bytes // (group * (dim * q.element_size() + 4)))),
        item=block_m // group * ITEM_TILES,
    )


def chunks(plan: Plan, tiles: Tiles, lists: Lists) -> Iterator[tuple[int, int]]:
    """Each chunk's number, and its number among those whose lists are made."""
    for first_chunk in range(0, lists.num_chunks, lists.chunks):
        make_lists(plan, tiles, lists, first_chunk=first_chunk)
        for i_chunk in range(min(lists.chunks, lists.num_chunks - first_chunk)):
            yield first_chunk + i_chunk, i_chunk
