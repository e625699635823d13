"""The selected (row, block) pairs that neighbouring rows do not share: keys outside, rows gathered.

For every block, the rows left to it are listed and attend to it in full tiles; each pair leaves a
normalised partial output and its LSE in a buffer, and a second kernel merges the partials of a row
with what `selected` made of the shared blocks. K and V are read once a block instead of once a row.

Pairs are numbered in the order of the rows, and go through in chunks that fit the buffer: where few
pairs are scattered a chunk spans many rows. Where a chunk begins is known on the device alone; the
host launches as many as there could be. The order of a list is left to atomics: no result depends
on it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import LOG2_E, load_rows, scores, store_rows, tile_of
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.selected import Plan
from videonsa.ops.triton.tuning import Config

ITEM_TILES = 8
"""Tiles of rows for which a program loads the keys of a block once."""
CHUNKS_PER_PASS = 16
"""Chunks whose lists are made at once."""
MERGE_PROGRAMS = 32
"""Programs of one warp on each multiprocessor: without barriers they hide the memory best."""


@triton.jit(do_not_specialize=["first_chunk", "capacity"])
def _list_kernel(
    scattered,  # [R, H, n] blocks
    num_scattered,  # [R, H]
    first_pair,  # [R, H]
    tile_base,  # [tiles, H] pairs of all tiles before
    tiles,  # [tiles, 2] or None
    rows_of_sample,
    cursor,  # [chunks, H, C] counts, or (FILL) the next free place of each list
    pairs,  # [pairs of a pass, 2] row, and place of its partial output
    num_blocks,
    H,
    first_chunk,
    capacity,
    NUM_SELECTED: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    FILL: tl.constexpr,
):
    i_tile, i_h = tl.program_id(0), tl.program_id(1)
    first_row, num_rows = tile_of(tiles, i_tile, rows_of_sample, TILE)
    base = tl.load(tile_base + i_tile * H + i_h)
    chunk = base // capacity - first_chunk
    if (chunk < 0) | (chunk >= CHUNKS) | (num_rows == 0):
        return
    o_t, o_s = tl.arange(0, TILE), tl.arange(0, BLOCK_S)
    o_row = (first_row + o_t).to(tl.int64) * H + i_h
    b_num = tl.load(num_scattered + o_row, mask=o_t < num_rows, other=0)
    if tl.max(b_num, 0) == 0:
        return
    m_pair = o_s[None, :] < b_num[:, None]
    b_c = tl.load(scattered + o_row[:, None] * NUM_SELECTED + o_s[None, :], mask=m_pair, other=0)
    p_cursor = cursor + (chunk * H + i_h) * num_blocks + b_c
    b_place = tl.atomic_add(p_cursor, 1, mask=m_pair, sem="relaxed").to(tl.int64)
    if FILL:
        b_first = tl.load(first_pair + o_row, mask=o_t < num_rows, other=0)
        b_partial = base % capacity + b_first[:, None] + o_s[None, :]
        tl.store(pairs + 2 * b_place, (first_row + o_t)[:, None] + o_s[None, :] * 0, mask=m_pair)
        tl.store(pairs + 2 * b_place + 1, b_partial, mask=m_pair)


@triton.jit
def _items_kernel(
    counts,  # [chunks * H * C]
    list_end,  # [chunks * H * C] cumulative pairs
    item_end,  # [chunks * H * C] cumulative items
    cursor,  # [chunks * H * C] where each list starts
    items,  # [bound, 3] list, first pair, pairs
    num_lists,
    ITEM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_l = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_l = o_l < num_lists
    b_count = tl.load(counts + o_l, mask=m_l, other=0)
    b_first = tl.load(list_end + o_l, mask=m_l, other=0) - b_count
    tl.store(cursor + o_l, b_first, mask=m_l)
    b_items = (b_count + ITEM - 1) // ITEM
    b_item = tl.load(item_end + o_l, mask=m_l, other=0) - b_items
    for i in range(tl.max(b_items, 0)):
        p_item = items + (b_item + i) * 3
        tl.store(p_item, o_l, mask=i < b_items)
        tl.store(p_item + 1, b_first + i * ITEM, mask=i < b_items)
        tl.store(p_item + 2, tl.minimum(b_count - i * ITEM, ITEM), mask=i < b_items)


@triton.jit
def _partial_kernel(
    q,  # [R, HQ, D]
    k,  # [S, H, D]
    v,  # [S, H, D]
    partial,  # [pairs of the chunk, G, D]
    partial_lse,  # [pairs of the chunk, G] base 2
    pairs,  # [pairs, 2] row, place
    items,  # [bound, 3]
    chunk_items,  # [4] first item of this chunk and of the next
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
    first_item, stop_item = tl.load(chunk_items), tl.load(chunk_items + 1)
    for i_item in range(first_item + tl.program_id(0), stop_item, tl.num_programs(0)):
        p_item = items + i_item * 3
        i_list, first, num_pairs = tl.load(p_item), tl.load(p_item + 1), tl.load(p_item + 2)
        i_h, i_c = i_list // num_blocks % H, i_list % num_blocks
        m_n = o_n < tl.load(block_size + i_c)
        start_key = tl.load(block_start + i_c).to(tl.int64)
        p_k = k + start_key * stride_ks + i_h * stride_kh
        p_v = v + start_key * stride_vs + i_h * stride_vh + o_n[:, None] * stride_vs + o_h[None, :]
        b_k = load_rows(p_k + (o_n[:, None] * stride_ks + o_d[None, :]), m_n, o_d, D, BLOCK_D)
        b_v = load_rows(p_v, m_n, o_h, D, half)
        if HALVES == 2:
            b_w = load_rows(p_v + half, m_n, half + o_h, D, half)
        p_pairs = pairs + first.to(tl.int64) * 2 + o_t * 2
        p_q = q + (i_h * G + o_g) * stride_qh
        for start in range(0, num_pairs, tile):
            m_row = (o_t < tile) & (start + o_t < num_pairs)
            b_row = tl.load(p_pairs + start * 2, mask=m_row, other=0)
            o_out = tl.load(p_pairs + start * 2 + 1, mask=m_row, other=0) * G + o_g
            p_row = p_q + b_row.to(tl.int64) * stride_qr
            b_q = load_rows(p_row[:, None] + o_d[None, :], m_row, o_d, D, BLOCK_D)
            b_s = scores(b_q, b_k, PRECISION)
            if not FULL_BLOCKS:
                b_s = tl.where(m_n[None, :], b_s, float("-inf"))
            b_m = tl.max(b_s, 1) * scale_log2
            b_p = tl.exp2(b_s * scale_log2 - b_m[:, None])
            b_l = tl.sum(b_p, 1)
            b_p = (b_p * (1.0 / b_l)[:, None]).to(b_v.dtype)
            tl.store(partial_lse + o_out, b_m + tl.log2(b_l), mask=m_row)
            p_out = partial + (o_out[:, None] * D + o_h[None, :])
            b_o = tl.dot(b_p, b_v, input_precision=PRECISION)
            store_rows(p_out, b_o, m_row, o_h, D, half)
            if HALVES == 2:
                b_o = tl.dot(b_p, b_w, input_precision=PRECISION)
                store_rows(p_out + half, b_o, m_row, half + o_h, D, half)


@triton.jit(do_not_specialize=["capacity"])
def _merge_kernel(
    partial,  # [pairs of the chunk, G, D]
    partial_lse,  # [pairs of the chunk, G] base 2
    num_scattered,  # [R, H]
    first_pair,  # [R, H]
    tile_base,  # [tiles, H]
    chunk_units,  # [4] first (tile, head) of this chunk and of the next
    o_slc,  # [R, HQ, D], holds the shared blocks, gets all
    lse_slc,  # [R, HQ], likewise
    tiles,  # [tiles, 2] or None
    rows_of_sample,
    capacity,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STEP: tl.constexpr,
):
    o_g, o_s, o_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    m_g = o_g < G
    first_unit, stop_unit = tl.load(chunk_units), tl.load(chunk_units + 1)
    num_units = (stop_unit - first_unit) * TILE
    for i in range(tl.program_id(0), num_units, tl.num_programs(0)):
        i_unit, i_t = first_unit + i // TILE, i % TILE
        i_tile, i_h = i_unit // H, i_unit % H
        first_row, num_rows = tile_of(tiles, i_tile, rows_of_sample, TILE)
        o_row = (first_row + i_t).to(tl.int64) * H + i_h
        num = tl.load(num_scattered + o_row, mask=i_t < num_rows, other=0)
        if num > 0:
            pair = tl.load(tile_base + i_unit) % capacity + tl.load(first_pair + o_row)
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
            b_o = load_rows(p_o, m_g, o_d, D, BLOCK_D).to(tl.float32) * b_w[:, None]
            p_part = partial + (pair * G * D + o_gd)
            for start in range(0, num, STEP):
                for j in tl.static_range(STEP):
                    m_x = m_g & (start + j < num)
                    b_x = load_rows(p_part + (start + j) * G * D, m_x, o_d, D, BLOCK_D)
                    b_w = tl.load(p_lse + (start + j) * G, mask=m_x, other=float("-inf"))
                    b_o += b_x.to(tl.float32) * tl.exp2(b_w - b_m)[:, None]
            b_l = tl.where(m_g, b_l, 1.0)
            store_rows(p_o, b_o * (1.0 / b_l)[:, None], m_g, o_d, D, BLOCK_D)
            tl.store(p_own, (b_m + tl.log2(b_l)) * 0.6931471805599453, mask=m_g)


def add_scattered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o_slc: Tensor,
    lse_slc: Tensor,
    tiles: Tiles,
    plan: Plan,
    index: StreamIndex,
    *,
    full_blocks: bool,
    partial_bytes: int,
    num_multiprocessors: int,
    config: Config,
) -> None:
    """Merges the scattered pairs of all tiles into o_slc `[R, HQ, D]` and its LSE `[R, HQ]`.

    Args:
        q: `[R, HQ, D]`.
        k: `[S, H, D]`.
        v: `[S, H, D]`.
        o_slc: attention over the shared blocks; updated.
        lse_slc: its LSE; updated.
        tiles: of at most 32 rows.
        plan: of these tiles.
        index: of these rows and keys.
        full_blocks: every block has `config.block_n` tokens.
        partial_bytes: size of the buffer of partial outputs.
        num_multiprocessors: of the GPU.
        config: of the partial kernel.
    """
    num_rows, num_kv_heads, num_selected = plan.scattered.shape
    group, dim = q.shape[1] // num_kv_heads, q.shape[2]
    num_lists = num_kv_heads * len(index.block_start)
    most = num_rows * num_kv_heads * num_selected
    capacity = max(1, min(most, partial_bytes // (group * (dim * q.element_size() + 4))))
    num_chunks = -(-most // capacity)
    chunks = min(CHUNKS_PER_PASS, num_chunks)
    in_pass = min(most, chunks * capacity) + tiles.size * num_selected
    item = config.block_m // group * ITEM_TILES

    def ints(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=q.device)

    pair_end = plan.tile_pairs.flatten().cumsum(0, dtype=torch.int32)
    tile_base = pair_end - plan.tile_pairs.flatten()
    limits = torch.arange(num_chunks + 1, dtype=torch.int32, device=q.device) * capacity
    unit = torch.searchsorted(tile_base, limits, out_int32=True)
    chunk_units = torch.stack([unit[:-1], unit[1:]] * 2, dim=1)
    space = (capacity + tiles.size * num_selected) * group
    partial = q.new_empty(space * dim)
    partial_lse = torch.empty(space, dtype=torch.float32, device=q.device)
    counts, cursor = ints(chunks, num_lists), ints(chunks, num_lists)
    pairs, items = ints(in_pass, 2), ints(in_pass // item + min(counts.numel(), in_pass), 3)
    for first_chunk in range(0, num_chunks, chunks):
        counts.zero_()
        for fill, cells in ((False, counts), (True, cursor)):
            _list_kernel[(tiles.num, num_kv_heads)](
                plan.scattered,
                plan.num_scattered,
                plan.pair,
                tile_base,
                tiles.table,
                tiles.rows_of_sample,
                cells,
                pairs,
                len(index.block_start),
                num_kv_heads,
                first_chunk,
                capacity,
                NUM_SELECTED=num_selected,
                CHUNKS=chunks,
                TILE=tiles.size,
                BLOCK_S=triton.next_power_of_2(num_selected),
                FILL=fill,
                num_warps=4,
            )
            if not fill:
                chunk_items = _make_items(counts, cursor, items, item=item)
        for i in range(min(chunks, num_chunks - first_chunk)):
            _partial_kernel[(config.programs * num_multiprocessors,)](
                q,
                k,
                v,
                partial,
                partial_lse,
                pairs,
                items,
                chunk_items[i],
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
            _merge_kernel[(MERGE_PROGRAMS * num_multiprocessors,)](
                partial,
                partial_lse,
                plan.num_scattered,
                plan.pair,
                tile_base,
                chunk_units[first_chunk + i],
                o_slc,
                lse_slc,
                tiles.table,
                tiles.rows_of_sample,
                capacity,
                num_kv_heads,
                G=group,
                D=dim,
                TILE=tiles.size,
                BLOCK_D=triton.next_power_of_2(dim),
                BLOCK_G=triton.next_power_of_2(group),
                BLOCK_S=triton.next_power_of_2(num_selected),
                STEP=2,
                num_warps=1,
            )


def _make_items(counts: Tensor, cursor: Tensor, items: Tensor, *, item: int) -> Tensor:
    """Cuts lists `[chunks, lists]` into items of at most `item` pairs, and starts their cursors.

    Returns `[chunks, 4]` int32: the first item of a chunk and of the next, twice: every row starts
    on 16 bytes, so that one compiled kernel serves all.
    """
    list_end = counts.flatten().cumsum(0, dtype=torch.int32)
    item_end = ((counts + (item - 1)) // item).flatten().cumsum(0, dtype=torch.int32)
    _items_kernel[(triton.cdiv(counts.numel(), 256),)](
        counts,
        list_end,
        item_end,
        cursor,
        items,
        counts.numel(),
        ITEM=item,
        BLOCK=256,
        num_warps=1,
    )
    stop = item_end.view(counts.shape)[:, -1]
    first = torch.nn.functional.pad(stop[:-1], (1, 0))
    return torch.stack([first, stop] * 2, dim=1)
