"""Attention over block lists: one program for each query tile of a query head.

It walks the tiles of its list from the first key to the diagonal, then gathers the single columns
that lie in none of them; one online softmax runs over both.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.block_lists import BlockLists, Trim
from videonsa.ops.triton.common import (
    LOG2_E,
    descriptors,
    heads,
    launcher,
    load_head,
    load_rows,
    on_device,
    scores,
    softmax_end,
    softmax_step,
    store_rows,
)
from videonsa.ops.triton.decode_tuning import major_capability
from videonsa.ops.triton.sparse_tuning import SparseConfig, sparse_config
from videonsa.ops.triton.support import compute_device

MASK_WORDS = 16
"""Of 32 columns, that a program of `_column_bits_kernel` writes."""


class _Columns(NamedTuple):
    """Which single columns each query tile attends to beside its tiles; of C columns."""

    columns: Tensor  # [C] int32, as in `BlockLists`
    starts: Tensor  # [HQ + 1] int32
    ends: Tensor  # [HQ, R] int32: one past the head's last column that a tile's last row may see
    bits: Tensor  # [R, ceil(C / 32)] int32: a bit for each column, 1 where the tile reads it


@triton.jit
def _seen(o_row, o_key, trim, num_tokens):
    """Which keys [N] count for which rows [M]: causal, and as `Trim` says, or None."""
    m_s = o_key[None, :] <= o_row[:, None]
    if trim is not None:
        num_init, window, num_last = trim
        m_far = (o_key >= num_init)[None, :] & (o_row < num_tokens - num_last)[:, None]
        m_s = m_s & ((o_row[:, None] - o_key[None, :] < window) | (m_far == 0))
    return m_s


@triton.jit(do_not_specialize=["num_columns", "num_words"])
def _column_bits_kernel(
    columns,  # [C]
    column_heads,  # [C] int32
    ends,  # [HQ, R]
    row_starts,  # [HQ, R + 1]
    tiles,  # [N]
    bits,  # [R, W], written
    num_columns,
    num_words,
    KEY_TILE: tl.constexpr,
    WORDS: tl.constexpr,
):
    R = tl.num_programs(0)
    i_r = tl.program_id(0)
    o_word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    o_bit = tl.arange(0, 32)
    o_c = o_word[:, None] * 32 + o_bit[None, :]  # [WORDS, 32]
    m_c = o_c < num_columns
    b_key = tl.load(columns + o_c, mask=m_c, other=0)
    b_head = tl.load(column_heads + o_c, mask=m_c, other=0)
    m_c = m_c & (o_c < tl.load(ends + b_head * R + i_r))
    p_starts = row_starts + b_head * (R + 1) + i_r
    b_first = tl.load(p_starts, mask=m_c, other=0)
    # The last tile that begins at or before the column, by bisection: in [low, high).
    b_low, b_high = b_first - 1, tl.load(p_starts + 1, mask=m_c, other=0)
    while tl.max(tl.max(b_high - b_low, 1), 0) > 1:
        b_middle = (b_low + b_high) // 2
        m_more = b_high - b_low > 1
        b_start = tl.load(tiles + b_middle, mask=m_more, other=0)
        b_low = tl.where(m_more & (b_start <= b_key), b_middle, b_low)
        b_high = tl.where(m_more & (b_start > b_key), b_middle, b_high)
    b_start = tl.load(tiles + b_low, mask=m_c & (b_low >= b_first), other=-KEY_TILE)
    m_c = m_c & (b_key >= b_start + KEY_TILE)
    b_word = tl.sum(m_c.to(tl.int32) << o_bit[None, :], 1)
    tl.store(bits + i_r.to(tl.int64) * num_words + o_word, b_word, mask=o_word < num_words)


@triton.jit(do_not_specialize=["num_tokens"])
def _block_sparse_kernel(
    q,  # heads of [T, HQ, D]
    k,  # heads of [T, H, D]
    v,
    k_tma,  # descriptor of k, or None
    v_tma,
    out,  # [T, HQ, D]
    lse,  # [T, HQ]
    order,  # [HQ * R] which (head, query tile) each program takes
    row_starts,  # [HQ, R + 1]
    tiles,  # [N]
    columns,  # of `_Columns`, or None
    trim,  # of `Trim`, or None
    num_tokens,
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEY_TILE: tl.constexpr,
    COLUMN_N: tl.constexpr,
    COLUMN_STAGES: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    STEPS: tl.constexpr = KEY_TILE // BLOCK_N
    HQ = q[3]
    R = tl.cdiv(num_tokens, BLOCK_M)
    i_unit = tl.load(order + tl.program_id(0))
    i_hq, i_r = i_unit // R, i_unit % R
    i_h = i_hq // G
    first_row = i_r * BLOCK_M
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_row = first_row + o_m
    m_row = o_row < num_tokens
    p_starts = row_starts + i_hq * (R + 1) + i_r
    first_tile = tl.load(p_starts)
    num_steps = (tl.load(p_starts + 1) - first_tile) * STEPS
    # Tiles ascend without overlapping, so no more than these reach behind the first row.
    num_whole = tl.maximum(num_steps - (tl.cdiv(BLOCK_M, KEY_TILE) + 1) * STEPS, 0)
    p_tiles = tiles + first_tile

    b_q = load_head(q, None, first_row, i_hq, o_m, m_row, o_d, D)
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_all = o_n >= 0
    for i_n in range(num_whole):
        start = tl.load(p_tiles + i_n // STEPS) + i_n % STEPS * BLOCK_N
        b_k = load_head(k, k_tma, start, i_h, o_n, m_all, o_d, D)
        b_v = load_head(v, v_tma, start, i_h, o_n, m_all, o_d, D)
        b_s = scores(b_q, b_k)
        if trim is not None:
            b_s = tl.where(_seen(o_row, start + o_n, trim, num_tokens), b_s, float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    for i_n in range(num_whole, num_steps):
        start = tl.load(p_tiles + i_n // STEPS) + i_n % STEPS * BLOCK_N
        m_n = o_n < num_tokens - start
        b_k = load_head(k, k_tma, start, i_h, o_n, m_n, o_d, D)
        b_v = load_head(v, v_tma, start, i_h, o_n, m_n, o_d, D)
        m_s = _seen(o_row, start + o_n, trim, num_tokens)
        b_s = tl.where(m_s, scores(b_q, b_k), float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    if columns is not None:
        p_columns, column_starts, p_ends, p_bits = columns
        num_words = tl.cdiv(tl.load(column_starts + HQ), 32)
        p_bits += i_r.to(tl.int64) * num_words
        begin, end = tl.load(column_starts + i_hq), tl.load(p_ends + i_hq * R + i_r)
        o_n = tl.arange(0, COLUMN_N)
        p_k, p_v = k[0] + i_h * k[2] + o_d[None, :], v[0] + i_h * v[2] + o_d[None, :]
        for i_n in tl.range(tl.cdiv(end - begin, COLUMN_N), num_stages=COLUMN_STAGES):
            o_c = begin + i_n * COLUMN_N + o_n
            m_c = o_c < end
            b_key = tl.load(p_columns + o_c, mask=m_c, other=0)
            m_n = m_c & (((tl.load(p_bits + o_c // 32, mask=m_c, other=0) >> (o_c % 32)) & 1) != 0)
            o_k = b_key.to(tl.int64)[:, None]
            b_k = load_rows(p_k + o_k * k[1], m_n, o_d, D)
            b_v = load_rows(p_v + o_k * v[1], m_n, o_d, D)
            m_s = m_n[None, :] & _seen(o_row, b_key, trim, num_tokens)
            b_s = tl.where(m_s, scores(b_q, b_k), float("-inf"))
            b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    b_o, b_lse = softmax_end(b_acc, b_m, b_l)
    o_out = first_row.to(tl.int64) * HQ + i_hq + o_m * HQ
    store_rows(out + o_out[:, None] * D + o_d[None, :], b_o, m_row, o_d, D)
    tl.store(lse + o_out, b_lse, mask=m_row)


def block_sparse_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    trim: Trim | None,
    scale: float,
    config: SparseConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and LSE of `block_sparse_attention`, which has checked the arguments.

    Args:
        q: `[T, HQ, D]`.
        k: `[T, H, D]`.
        v: `[T, H, D]`.
        lists: of HQ heads.
        trim: which pairs of the lists count. Default: all causal ones.
        scale: of the scores.
        config: of the kernel. Default: as measured for the device.

    Returns:
        `[T, HQ, D]` in the dtype of q, and `[T, HQ]` float32.
    """
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    num_tokens, num_heads, dim = q.shape
    num_kv_heads = k.shape[1]
    if config is None:
        width = triton.next_power_of_2(dim) * q.element_size()
        capability = major_capability(compute_device(q.device))
        config = sparse_config(lists.query_tile, width, capability=capability)
    out = torch.empty((num_tokens, num_heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((num_tokens, num_heads), dtype=torch.float32, device=q.device)
    with on_device(q):
        columns = _columns(lists, num_tokens)
        launcher(_block_sparse_kernel, q)[(num_heads * lists.num_query_tiles,)](
            heads(q),
            heads(k),
            heads(v),
            *descriptors((k, config.block_n), (v, config.block_n), tma=config.tma),
            out,
            lse,
            _order(lists, columns, num_kv_heads=num_kv_heads),
            lists.row_starts.contiguous(),
            lists.tiles.contiguous(),
            None if columns is None else tuple(columns),
            None if trim is None else tuple(trim),
            num_tokens,
            scale * LOG2_E,
            G=num_heads // num_kv_heads,
            D=dim,
            BLOCK_M=lists.query_tile,
            BLOCK_N=config.block_n,
            KEY_TILE=lists.key_tile,
            COLUMN_N=config.column_n,
            COLUMN_STAGES=config.column_stages,
            **config.launch,
        )
    return out, lse


def _order(lists: BlockLists, columns: _Columns | None, *, num_kv_heads: int) -> Tensor:
    """(Head, query tile) of each program: KV head by KV head, so that its keys stay in L2.

    Of one KV head the longest lists come first, or a long one would run alone at the end.
    """
    length = lists.num_tiles() * lists.key_tile
    if columns is not None:
        length = length + columns.ends - columns.starts[:-1, None]
    by_kv_head = length.view(num_kv_heads, -1)
    first = torch.arange(num_kv_heads, device=length.device)[:, None] * by_kv_head.shape[1]
    order = by_kv_head.argsort(dim=1, descending=True, stable=True) + first
    return order.flatten().int()


def _columns(lists: BlockLists, num_tokens: int) -> _Columns | None:
    """The columns of each query tile that lie in none of its tiles, as bits."""
    if lists.columns is None or lists.column_starts is None or not len(lists.columns):
        return None
    columns, starts = lists.columns.contiguous(), lists.column_starts.contiguous()
    device = columns.device
    num_columns, num_tiles = len(columns), lists.num_query_tiles
    slots = torch.arange(num_columns, dtype=torch.int32, device=device)
    column_heads = torch.searchsorted(starts, slots, right=True) - 1
    # Ascending over all heads, so one search serves them all.
    keys = columns + column_heads * num_tokens
    last = torch.arange(1, num_tiles + 1, device=device) * lists.query_tile
    head_keys = torch.arange(lists.num_heads, device=device) * num_tokens
    ends = torch.searchsorted(keys, last.clamp(max=num_tokens) + head_keys[:, None], out_int32=True)
    num_words = triton.cdiv(num_columns, 32)
    bits = torch.empty((num_tiles, num_words), dtype=torch.int32, device=device)
    launcher(_column_bits_kernel, columns)[(num_tiles, triton.cdiv(num_words, MASK_WORDS))](
        columns,
        column_heads.int(),
        ends,
        lists.row_starts.contiguous(),
        lists.tiles.contiguous(),
        bits,
        num_columns,
        num_words,
        KEY_TILE=lists.key_tile,
        WORDS=MASK_WORDS,
        num_warps=4,
    )
    return _Columns(columns, starts, ends, bits)
