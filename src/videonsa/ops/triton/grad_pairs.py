"""Gradient of the queries through the scattered pairs: as `scattered`, keys outside, rows gathered.

Each pair leaves its part of dQ in a buffer, and a second kernel adds the parts of a row.
"""

import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    Keys,
    load_rows,
    needs_wide_offsets,
    scores,
    store_rows,
    tile_rows,
)
from videonsa.ops.triton.forward import num_multiprocessors
from videonsa.ops.triton.grad_terms import Queries, gated_weights, load_terms
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.scattered import MERGE_PROGRAMS, chunks, pair_lists
from videonsa.ops.triton.selected import Plan
from videonsa.ops.triton.tuning import Tuning


@triton.jit(do_not_specialize=["i_chunk", "region", "max_items"])
def _pair_gradient_kernel(
    q,  # heads of [R, HQ, D]
    upstream,  # of `Queries`
    k,  # heads of [S, H, D]
    v,  # likewise
    partial,  # [pairs of the chunk, G, D]
    pairs,  # [chunks, region, 2] row, place
    items,  # [chunks, max_items, 3]
    totals,  # [chunks, 2] pairs and items
    blocks,  # of `StreamIndex`
    i_chunk,  # of the pass
    region,
    max_items,
    scale,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile: tl.constexpr = BLOCK_M // G
    grad = upstream[0]
    p_q, stride_qn, stride_qh, HQ = q
    base_k, stride_kn, stride_kh = k[:3]
    base_v, stride_vn, stride_vh = v[:3]
    block_start, block_size, num_blocks = blocks
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, o_g = o_m // G, o_m % G
    p_items = items + i_chunk.to(tl.int64) * max_items * 3
    num_items = tl.load(totals + 2 * i_chunk + 1)
    for i_item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        p_item = p_items + i_item * 3
        i_list, first, num_pairs = tl.load(p_item), tl.load(p_item + 1), tl.load(p_item + 2)
        i_h, i_c = i_list // num_blocks, i_list % num_blocks
        m_n = o_n < tl.load(block_size + i_c)
        start_key = tl.load(block_start + i_c).to(tl.int64)
        p_k = base_k + start_key * stride_kn + i_h * stride_kh
        p_v = base_v + start_key * stride_vn + i_h * stride_vh
        b_k = load_rows(p_k + (o_n[:, None] * stride_kn + o_d[None, :]), m_n, o_d, D)
        b_v = load_rows(p_v + (o_n[:, None] * stride_vn + o_d[None, :]), m_n, o_d, D)
        p_pairs = pairs + (i_chunk.to(tl.int64) * region + first) * 2 + o_t * 2
        for start in range(0, num_pairs, tile):
            m_row = (o_t < tile) & (start + o_t < num_pairs)
            b_row = tl.load(p_pairs + start * 2, mask=m_row, other=0)
            if WIDE:
                b_row = b_row.to(tl.int64)
            o_out = tl.load(p_pairs + start * 2 + 1, mask=m_row, other=0) * G + o_g
            o_hq = b_row * HQ + i_h * G + o_g
            o_q = b_row * stride_qn + (i_h * G + o_g) * stride_qh
            b_q = load_rows(p_q + (o_q[:, None] + o_d[None, :]), m_row, o_d, D)
            b_do = load_rows(grad + (o_hq[:, None] * D + o_d[None, :]), m_row, o_d, D)
            terms = load_terms(upstream, o_hq, m_row, 1)
            b_s = scores(b_q, b_k)
            if not FULL_BLOCKS:
                b_s = tl.where(m_n[None, :], b_s, float("-inf"))
            b_dp = scores(b_do, b_v)
            _, b_ds = gated_weights(b_s, b_dp, terms)
            b_dq = tl.dot((b_ds * scale).to(b_k.dtype), b_k, input_precision="ieee")
            p_out = partial + (o_out[:, None] * D + o_d[None, :])
            store_rows(p_out, b_dq, m_row, o_d, D)


@triton.jit(do_not_specialize=["i_chunk", "capacity"])
def _pair_sum_kernel(
    partial,  # [pairs of the chunk, G, D]
    pairs,  # of `Plan`
    pair_end,  # [tiles * H] cumulative
    chunk_units,  # [chunks + 1] first (tile, head) of each chunk
    grad_q,  # [R, HQ, D]
    tiles,  # runs of `Tiles`
    i_chunk,
    capacity,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_G: tl.constexpr = triton.next_power_of_2(G)
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    o_g, o_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    m_g = o_g < G
    o_gd = o_g[:, None] * D + o_d[None, :]
    _, num_scattered, first_pair, tile_pairs = pairs
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
            b_sum = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
            p_part = partial + (pair * G * D + o_gd)
            for j in range(num):
                b_x = load_rows(p_part + j * G * D, m_g, o_d, D)
                b_sum += b_x.to(tl.float32)
            store_rows(grad_q + o_row * G * D + o_gd, b_sum, m_g, o_d, D)


def pair_gradients(
    queries: Queries,
    keys: Keys,
    grad_q: Tensor,
    tiles: Tiles,
    plan: Plan,
    index: StreamIndex,
    *,
    tuning: Tuning,
) -> None:
    """Writes into grad_q `[R, HQ, D]` the rows that have scattered pairs, and no others.

    Args:
        queries: and what comes back to them.
        keys: of the stream.
        grad_q: written.
        tiles: of at most 32 rows.
        plan: of these tiles.
        index: of these rows and keys.
        tuning: how; its `partial_bytes` are those of the buffer of partial gradients.
    """
    q, num_kv_heads, dim = queries.q, keys.k.shape[1], keys.k.shape[2]
    group = q.shape[1] // num_kv_heads
    config, num_processors = tuning.pair_gradient, num_multiprocessors(q.device)
    lists = pair_lists(
        plan, tiles, index, q, partial_bytes=tuning.partial_bytes, block_m=config.block_m
    )
    partial = q.new_empty(lists.region * group * dim)
    for chunk, i_chunk in chunks(plan, tiles, lists):
        _pair_gradient_kernel[(config.programs * num_processors,)](
            *queries.arguments,
            *keys.arguments[:2],
            partial,
            *lists.work,
            index.blocks,
            i_chunk,
            lists.region,
            lists.max_items,
            dim**-0.5,
            G=group,
            D=dim,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            FULL_BLOCKS=index.uniform and index.max_size == config.block_n,
            WIDE=needs_wide_offsets(q) or needs_wide_offsets(queries.grad),
            **config.launch,
        )
        _pair_sum_kernel[(MERGE_PROGRAMS * num_processors,)](
            partial,
            plan.pairs,
            *lists.units,
            grad_q,
            tiles.runs,
            chunk,
            lists.capacity,
            num_kv_heads,
            G=group,
            D=dim,
            TILE=tiles.size,
            num_warps=1,
        )
