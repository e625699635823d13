"""The selected branch over the union of the blocks that neighbouring rows chose.

A tile of rows with all heads of a group walks each block that any of its rows chose once, with a
bit for every row. Tiles whose union is too large are left to `scattered`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import LOG2_E, load_rows, scores, softmax_end, softmax_step, store_rows
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.tuning import Config

MAX_TILE_ROWS = 32
"""Rows of a tile have a bit each in an int32."""


@triton.jit
def _union_kernel(
    selected,  # [R, H, n] flat blocks, ascending, then -1
    union_block,  # [tiles, H, UNION_MAX]
    union_rows,  # [tiles, H, UNION_MAX] one bit a row
    union_size,  # [tiles, H, 2] blocks, and how many lie before the first row's current one
    tiles,  # [tiles, 2]
    row_block,  # [R]
    H,
    NUM_SELECTED: tl.constexpr,
    UNION_MAX: tl.constexpr,
    TILE: tl.constexpr,
):
    i_tile, i_h = tl.program_id(0), tl.program_id(1)
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    o_t = tl.arange(0, TILE)
    m_t = o_t < num_rows
    none: tl.constexpr = 2147483647
    p_row = selected + ((first_row + o_t).to(tl.int64) * H + i_h) * NUM_SELECTED
    b_slot = tl.zeros([TILE], tl.int32)
    b_next = tl.load(p_row, mask=m_t, other=-1)
    b_next = tl.where(b_next < 0, none, b_next)
    current = tl.load(row_block + first_row)
    o_out = (i_tile.to(tl.int64) * H + i_h) * UNION_MAX
    size, num_before = 0, 0
    block = tl.min(b_next, 0)
    # Merge the ascending lists; stop when the union is known to be too large.
    while (block != none) & (size <= UNION_MAX):
        m_hit = b_next == block
        rows = tl.sum(m_hit.to(tl.int32) << o_t, 0)
        tl.store(union_block + o_out + size, block, mask=size < UNION_MAX)
        tl.store(union_rows + o_out + size, rows, mask=size < UNION_MAX)
        size += 1
        num_before += (block < current).to(tl.int32)
        b_slot += m_hit.to(tl.int32)
        b_new = tl.load(p_row + b_slot, mask=m_hit & (b_slot < NUM_SELECTED), other=-1)
        b_next = tl.where(m_hit, tl.where(b_new < 0, none, b_new), b_next)
        block = tl.min(b_next, 0)
    p_size = union_size + (i_tile.to(tl.int64) * H + i_h) * 2
    tl.store(p_size, size)
    tl.store(p_size + 1, num_before)


@triton.jit
def _selected_kernel(
    q,  # [R, HQ, D]
    k,  # [S, H, D]
    v,  # [S, H, D]
    o_slc,  # [R, HQ, D]
    lse_slc,  # [R, HQ]
    tiles,  # [tiles, 2]
    union_block,  # [tiles, H, UNION_MAX]
    union_rows,  # [tiles, H, UNION_MAX]
    union_size,  # [tiles, H, 2]
    block_start,  # [C]
    block_size,  # [C]
    row_key,  # [R]
    num_keys,
    stride_qr,
    stride_qh,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    scale_log2,
    HQ,
    H,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNION_MAX: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_tile, i_h = tl.num_programs(0) // H - 1 - tl.program_id(0) // H, tl.program_id(0) % H
    first_row, num_rows = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    o_union = i_tile.to(tl.int64) * H + i_h
    num_union, num_before = tl.load(union_size + 2 * o_union), tl.load(union_size + 2 * o_union + 1)
    if (num_rows == 0) | (num_union > UNION_MAX):
        return
    p_block, p_rows = union_block + o_union * UNION_MAX, union_rows + o_union * UNION_MAX
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, o_g = o_m // G, o_m % G  # row and head of each line of the tile
    m_row = o_t < num_rows
    base = first_row.to(tl.int64)
    o_q = o_t * stride_qr + (i_h * G + o_g) * stride_qh
    b_q = load_rows(q + base * stride_qr + o_q[:, None] + o_d[None, :], m_row, o_d, D, BLOCK_D)
    b_key = tl.load(row_key + first_row + o_t, mask=m_row, other=-1)
    p_k = k + i_h * stride_kh + o_d[None, :]
    p_v = v + i_h * stride_vh + o_d[None, :]
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i_u in range(num_before):  # blocks that lie before every row of the tile
        i_c = tl.load(p_block + i_u)
        rows = tl.load(p_rows + i_u)
        o_key = (tl.load(block_start + i_c) + o_n).to(tl.int64)[:, None]
        if FULL_BLOCKS:
            b_k = load_rows(p_k + o_key * stride_ks, o_n < BLOCK_N, o_d, D, BLOCK_D)
            b_v = load_rows(p_v + o_key * stride_vs, o_n < BLOCK_N, o_d, D, BLOCK_D)
            m_s = ((rows >> o_t) & 1)[:, None] != 0
        else:
            m_n = o_n < tl.load(block_size + i_c)
            b_k = load_rows(p_k + o_key * stride_ks, m_n, o_d, D, BLOCK_D)
            b_v = load_rows(p_v + o_key * stride_vs, m_n, o_d, D, BLOCK_D)
            m_s = (((rows >> o_t) & 1)[:, None] != 0) & m_n[None, :]
        b_s = tl.where(m_s, scores(b_q, b_k, PRECISION), float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2, PRECISION)
    for i_u in range(num_before, num_union):
        i_c = tl.load(p_block + i_u)
        rows = tl.load(p_rows + i_u)
        o_key = tl.load(block_start + i_c) + o_n
        m_n = (o_n < tl.load(block_size + i_c)) & (o_key < num_keys)
        b_k = load_rows(p_k + o_key.to(tl.int64)[:, None] * stride_ks, m_n, o_d, D, BLOCK_D)
        b_v = load_rows(p_v + o_key.to(tl.int64)[:, None] * stride_vs, m_n, o_d, D, BLOCK_D)
        m_s = (((rows >> o_t) & 1)[:, None] != 0) & m_n[None, :] & (o_key[None, :] <= b_key[:, None])
        b_s = tl.where(m_s, scores(b_q, b_k, PRECISION), float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2, PRECISION)
    b_o, b_lse = softmax_end(b_acc, b_m, b_l)
    o_row = (base + o_t) * HQ + i_h * G + o_g
    store_rows(o_slc + o_row[:, None] * D + o_d[None, :], b_o, m_row, o_d, D, BLOCK_D)
    tl.store(lse_slc + o_row, b_lse, mask=m_row)


def union(
    selected: Tensor, tiles: Tensor, row_block: Tensor, *, tile: int, union_max: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks that the rows of each tile chose: (block, rows, size), int32.

    block and rows `[tiles, H, union_max]`; size `[tiles, H, 2]`: the blocks of the union, at most
    union_max + 1 where there are more, and how many lie before the first row's current block.
    """
    num_kv_heads, num_selected = selected.shape[1:]
    shape = (len(tiles), num_kv_heads)
    block = selected.new_empty((*shape, union_max))
    rows = torch.empty_like(block)
    size = selected.new_empty((*shape, 2))
    _union_kernel[shape](
        selected,
        block,
        rows,
        size,
        tiles,
        row_block,
        num_kv_heads,
        NUM_SELECTED=num_selected,
        UNION_MAX=union_max,
        TILE=tile,
        num_warps=1,
    )
    return block, rows, size


def selected_union(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o_slc: Tensor,
    lse_slc: Tensor,
    tiles: Tensor,
    unions: tuple[Tensor, Tensor, Tensor],
    index: StreamIndex,
    *,
    full_blocks: bool,
    config: Config,
) -> None:
    """Writes o_slc `[R, HQ, D]` and its LSE for the tiles whose union is within the bound."""
    num_heads, num_kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    _selected_kernel[(len(tiles) * num_kv_heads,)](
        q,
        k,
        v,
        o_slc,
        lse_slc,
        tiles,
        *unions,
        index.block_start,
        index.block_size,
        index.row_key,
        len(k),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        dim**-0.5 * LOG2_E,
        num_heads,
        num_kv_heads,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        UNION_MAX=unions[0].shape[-1],
        FULL_BLOCKS=full_blocks,
        PRECISION=config.precision,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
