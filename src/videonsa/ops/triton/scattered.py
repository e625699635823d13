"""The selected branch where neighbouring rows disagree: keys outside, rows gathered.

For every block, the rows that chose it are listed and attend to it in full tiles; each (row, block)
pair leaves a normalised partial output and its LSE in a buffer, and a second kernel merges the
partials of a row. K and V are read once a block instead of once a row. Rows go through in chunks
whose partials fit the buffer. The order of a list is left to atomics: no result depends on it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import LOG2_E, load_rows, scores, store_rows
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.tuning import Config

ITEM_TILES = 4
"""Tiles of rows for which a program loads the keys of a block once."""


@triton.jit
def _list_kernel(
    selected,  # [R, H, n]
    union_size,  # [tiles, H, 2], those of the chunk
    tiles,  # [tiles, 2], those of the chunk
    cursor,  # [H, C] counts, or (FILL) the next free place of each list
    pairs,  # [rows of the chunk * H * n] (row in the chunk) * n + slot, one list a block
    num_blocks,
    H,
    NUM_SELECTED: tl.constexpr,
    UNION_MAX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    FILL: tl.constexpr,
):
    i_tile, i_h = tl.program_id(0), tl.program_id(1)
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    if (num_rows == 0) | (tl.load(union_size + (i_tile * H + i_h) * 2) <= UNION_MAX):
        return
    o_t, o_s = tl.arange(0, TILE), tl.arange(0, BLOCK_S)
    m_pair = (o_t < num_rows)[:, None] & (o_s < NUM_SELECTED)[None, :]
    o_row = (first_row + o_t).to(tl.int64)[:, None]
    b_c = tl.load(selected + (o_row * H + i_h) * NUM_SELECTED + o_s[None, :], mask=m_pair, other=-1)
    p_cursor = cursor + i_h * num_blocks + b_c
    b_place = tl.atomic_add(p_cursor, 1, mask=b_c >= 0, sem="relaxed")
    if FILL:
        in_chunk = first_row - tl.load(tiles) + o_t
        tl.store(pairs + b_place, in_chunk[:, None] * NUM_SELECTED + o_s[None, :], mask=b_c >= 0)


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
    row_key,  # [R]
    num_blocks,
    num_keys,
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
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, o_g = o_m // G, o_m % G
    chunk_row = tl.load(tiles)
    for i_item in range(tl.program_id(0), tl.load(num_items), tl.num_programs(0)):
        i_list = tl.load(items + i_item * 3)
        first, num_pairs = tl.load(items + i_item * 3 + 1), tl.load(items + i_item * 3 + 2)
        i_h, i_c = i_list // num_blocks, i_list % num_blocks
        o_key = tl.load(block_start + i_c) + o_n
        m_n = (o_n < tl.load(block_size + i_c)) & (o_key < num_keys)
        o_kv = o_key.to(tl.int64)[:, None]
        p_k = k + i_h * stride_kh + o_kv * stride_ks + o_d[None, :]
        p_v = v + i_h * stride_vh + o_kv * stride_vs + o_d[None, :]
        b_k = load_rows(p_k, m_n, o_d, D, BLOCK_D)
        b_v = load_rows(p_v, m_n, o_d, D, BLOCK_D)
        for start in range(0, num_pairs, TILE):
            m_row = (o_t < TILE) & (start + o_t < num_pairs)
            b_pair = tl.load(pairs + first + start + o_t, mask=m_row, other=0)
            o_row = b_pair // NUM_SELECTED
            row = (chunk_row + o_row).to(tl.int64)
            b_key = tl.load(row_key + row, mask=m_row, other=-1)
            o_q = row * stride_qr + (i_h * G + o_g) * stride_qh
            b_q = load_rows(q + o_q[:, None] + o_d[None, :], m_row, o_d, D, BLOCK_D)
            b_s = scores(b_q, b_k, PRECISION) * scale_log2
            b_s = tl.where(m_n[None, :] & (o_key[None, :] <= b_key[:, None]), b_s, float("-inf"))
            b_m = tl.max(b_s, 1)
            b_m = tl.where(b_m == float("-inf"), 0.0, b_m)
            b_p = tl.exp2(b_s - b_m[:, None])
            b_l = tl.sum(b_p, 1)
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)
            b_some = tl.where(b_l > 0, b_l, 1.0)
            b_lse = tl.where(b_l > 0, b_m + tl.log2(b_some), float("-inf"))
            slot = b_pair % NUM_SELECTED
            o_out = ((o_row.to(tl.int64) * H + i_h) * NUM_SELECTED + slot) * G + o_g
            p_out = partial + o_out[:, None] * D + o_d[None, :]
            store_rows(p_out, b_o / b_some[:, None], m_row, o_d, D, BLOCK_D)
            tl.store(partial_lse + o_out, b_lse, mask=m_row)


@triton.jit
def _merge_kernel(
    partial,  # [rows of the chunk, H, n, G, D]
    partial_lse,  # [rows of the chunk, H, n, G] base 2
    selected,  # [R, H, n]
    o_slc,  # [R, HQ, D]
    lse_slc,  # [R, HQ]
    union_size,  # [tiles, H, 2], those of the chunk
    tiles,  # [tiles, 2], those of the chunk
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    UNION_MAX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STEP: tl.constexpr,
):
    i_tile, i_t, i_h = tl.program_id(0) // TILE, tl.program_id(0) % TILE, tl.program_id(1)
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    if (i_t >= num_rows) | (tl.load(union_size + (i_tile * H + i_h) * 2) <= UNION_MAX):
        return
    row = (first_row + i_t).to(tl.int64)
    o_g, o_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    m_g = o_g < G
    p_c = selected + (row * H + i_h) * NUM_SELECTED
    o_in = ((row - tl.load(tiles)) * H + i_h) * NUM_SELECTED
    o_s = tl.arange(0, BLOCK_S)
    m_s = tl.load(p_c + o_s, mask=o_s < NUM_SELECTED, other=-1) >= 0
    p_lse = partial_lse + (o_in + o_s)[:, None] * G + o_g[None, :]
    b_lse = tl.load(p_lse, mask=m_s[:, None] & m_g[None, :], other=float("-inf"))
    b_m = tl.max(b_lse, 0)
    b_safe = tl.where(b_m == float("-inf"), 0.0, b_m)
    b_l = tl.sum(tl.exp2(b_lse - b_safe[None, :]), 0)
    b_o = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    o_step = tl.arange(0, STEP)
    for start in range(0, NUM_SELECTED, STEP):
        o_k = start + o_step
        m_k = tl.load(p_c + o_k, mask=o_k < NUM_SELECTED, other=-1) >= 0
        m_kg = m_k[:, None] & m_g[None, :]
        o_kg = (o_in + o_k)[:, None] * G + o_g[None, :]
        b_w = tl.load(partial_lse + o_kg, mask=m_kg, other=float("-inf"))
        b_w = tl.exp2(b_w - b_safe[None, :])
        m_x = m_kg[:, :, None] & (o_d < D)[None, None, :]
        b_x = tl.load(partial + o_kg[:, :, None] * D + o_d[None, None, :], mask=m_x, other=0.0)
        b_o += tl.sum(b_x.to(tl.float32) * b_w[:, :, None], 0)
    b_some = tl.where(b_l > 0, b_l, 1.0)
    b_o = b_o / b_some[:, None]
    o_row = (row * H + i_h) * G + o_g
    store_rows(o_slc + o_row[:, None] * D + o_d[None, :], b_o, m_g, o_d, D, BLOCK_D)
    b_lse = tl.where(b_l > 0, (b_m + tl.log2(b_some)) * 0.6931471805599453, float("-inf"))
    tl.store(lse_slc + o_row, b_lse, mask=m_g)


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


def selected_scattered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    o_slc: Tensor,
    lse_slc: Tensor,
    tiles: Tensor,
    union_size: Tensor,
    index: StreamIndex,
    space: Workspace,
    *,
    tile: int,
    union_max: int,
    num_programs: int,
    config: Config,
) -> None:
    """Writes o_slc and its LSE for the tiles of one chunk whose union exceeds `union_max`.

    tiles `[tiles, 2]` and union_size `[tiles, H, 2]` are those of the chunk, of `tile` rows.
    """
    num_heads, num_kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    group, num_selected, num_blocks = num_heads // num_kv_heads, selected.shape[2], len(index.block_start)
    shared = {"NUM_SELECTED": num_selected, "UNION_MAX": union_max, "TILE": tile}
    block_s = triton.next_power_of_2(num_selected)

    def lists(cursor: Tensor, *, fill: bool) -> None:
        _list_kernel[(len(tiles), num_kv_heads)](
            selected,
            union_size,
            tiles,
            cursor,
            space.pairs,
            num_blocks,
            num_kv_heads,
            BLOCK_S=block_s,
            FILL=fill,
            num_warps=4,
            **shared,
        )

    space.counts.zero_()
    lists(space.counts, fill=False)
    pair_tile = config.block_m // group
    _items_kernel[(1,)](
        space.counts,
        space.cursor,
        space.items,
        space.num_items,
        num_kv_heads * num_blocks,
        ITEM=pair_tile * ITEM_TILES,
        BLOCK=2048,
        num_warps=16,
    )
    lists(space.cursor, fill=True)
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
        index.row_key,
        num_blocks,
        len(k),
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
        TILE=pair_tile,
        PRECISION=config.precision,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    _merge_kernel[(len(tiles) * tile, num_kv_heads)](
        space.partial,
        space.partial_lse,
        selected,
        o_slc,
        lse_slc,
        union_size,
        tiles,
        num_kv_heads,
        G=group,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_G=triton.next_power_of_2(group),
        BLOCK_S=block_s,
        STEP=min(4, block_s),
        num_warps=4,
        **shared,
    )
