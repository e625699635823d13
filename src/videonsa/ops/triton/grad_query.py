"""Gradient of the queries: every tile of rows walks again what it attended to.

Compressed blocks, window and shared blocks add to one accumulator; what the scattered pairs gave is
read from the output and added last.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    Keys,
    clean_steps,
    descriptors,
    load_finite_head,
    load_group,
    load_head,
    load_rows,
    scores,
    store_rows,
    tile_rows,
)
from videonsa.ops.triton.grad_terms import Queries, QueryTile, Terms, gated_weights, load_terms
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.selected import Plan
from videonsa.ops.triton.tuning import Tuning, rows_of_tile


class KeyHead(NamedTuple):
    """One KV head of `num` keys, and how tiles of them are read."""

    k: Any  # `heads`
    v: Any
    k_again: Any  # k through another pointer: where poison is read, addresses are made anew
    poison: Any  # of `Keys`
    k_tma: Any  # descriptors, or None
    v_tma: Any
    num: int
    i_h: int


class Seen(NamedTuple):
    """The keys [low, high) that each row [M] of a tile sees, and the bounds of all rows."""

    low: Tensor
    high: Tensor
    begin: Tensor
    all_begin: Tensor  # [all_begin, all_end) is seen by every row, in whole tiles of keys
    all_end: Tensor
    end: Tensor


class Walked(NamedTuple):
    """The blocks that a tile of the plan walks together, and the place of each row [M] in it."""

    start: Tensor  # of the tile, as in `Plan`
    size: Tensor
    rows: Tensor
    num: Tensor
    b_key: Tensor  # the key at the row
    b_bit: Tensor  # its query in the tile
    end: Tensor  # one past the last key that a row sees


@triton.jit
def _load_keys(head, start, o_n, m_n, D: tl.constexpr, POISONED: tl.constexpr):
    """Keys and values [N, D] from `start` on; where POISONED, keys that are not finite are 0."""
    o_d = tl.arange(0, triton.next_power_of_2(D))
    if POISONED:
        b_k, _ = load_finite_head(head.k_again, head.poison, start, head.i_h, o_n, m_n, o_d, D)
    else:
        b_k = load_head(head.k, head.k_tma, start, head.i_h, o_n, m_n, o_d, D)
    return b_k, load_head(head.v, head.v_tma, start, head.i_h, o_n, m_n, o_d, D)


@triton.jit
def _query_step(tile, b_k, b_v, b_dq, m_s, MASK: tl.constexpr):
    """b_dq [M, D] with one more tile of keys; m_s [M, N] where MASK.

    Keys that are not finite are 0 there: the delta of a row that sees them is NaN.
    """
    b_s = scores(tile.q, b_k)
    b_dp = scores(tile.grad, b_v)
    _, b_ds = gated_weights(b_s, b_dp, tile.terms)
    if MASK:
        b_ds = tl.where(m_s, b_ds, 0.0)
    return tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")


@triton.jit
def _border_step(
    tile, b_dq, seen, head, start, D: tl.constexpr, BLOCK_N: tl.constexpr, POISONED: tl.constexpr
):
    """Adds a tile of keys that not every row sees."""
    o_n = tl.arange(0, BLOCK_N)
    o_key = start + o_n
    # Where all is finite, what lies behind the last key that a row sees may be read with the rest.
    stop = seen.end if POISONED else head.num
    m_n = (o_key < stop) & (o_key >= seen.begin)
    b_k, b_v = _load_keys(head, start, o_n, m_n, D, POISONED)
    m_s = (o_key[None, :] >= seen.low[:, None]) & (o_key[None, :] < seen.high[:, None])
    return _query_step(tile, b_k, b_v, b_dq, m_s, MASK=True)


@triton.jit
def _interval_gradient(tile, b_dq, seen, head, D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Adds the keys that each row sees."""
    o_n = tl.arange(0, BLOCK_N)
    for i_n in range((seen.all_end - seen.all_begin) // BLOCK_N):
        start = seen.all_begin + i_n * BLOCK_N
        m_n = o_n < head.num - start
        b_k, b_v = _load_keys(head, start, o_n, m_n, D, POISONED=False)
        b_dq = _query_step(tile, b_k, b_v, b_dq, m_n, MASK=False)
    # The front tiles end at all_begin: the first may begin before the sample, masked.
    num_front = tl.cdiv(seen.all_begin - seen.begin, BLOCK_N)
    num_border = num_front + tl.cdiv(tl.maximum(seen.end - seen.all_end, 0), BLOCK_N)
    _, poisoned = head.poison
    num_clean = clean_steps(poisoned, num_border)
    for i_n in range(num_clean):
        start = tl.where(i_n < num_front, seen.all_begin, seen.all_end)
        start += (i_n - num_front) * BLOCK_N
        b_dq = _border_step(tile, b_dq, seen, head, start, D, BLOCK_N, POISONED=False)
    for i_n in tl.range(num_clean, num_border, num_stages=1):
        start = tl.where(i_n < num_front, seen.all_begin, seen.all_end)
        start += (i_n - num_front) * BLOCK_N
        b_dq = _border_step(tile, b_dq, seen, head, start, D, BLOCK_N, POISONED=True)
    return b_dq


@triton.jit
def _shared_step(
    tile,
    b_dq,
    walked,
    head,
    i,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
    BORDER: tl.constexpr,
    POISONED: tl.constexpr,
):
    """Adds part i of the shared blocks; at the BORDER not every row may see all its keys."""
    masked: tl.constexpr = BORDER or not FULL_BLOCKS
    o_n = tl.arange(0, BLOCK_N)
    part = i % PARTS * BLOCK_N
    start = tl.load(walked.start + i // PARTS) + part
    m_bit = ((tl.load(walked.rows + i // PARTS) >> walked.b_bit) & 1) != 0
    m_n = o_n < BLOCK_N
    if masked:
        m_n = o_n < tl.load(walked.size + i // PARTS) - part
    if BORDER:
        m_n = m_n & (o_n < walked.end - start)
    b_k, b_v = _load_keys(head, start, o_n, m_n, D, POISONED)
    b_own = tl.where(m_bit, tile.terms.lse, float("inf"))
    m_s = m_n[None, :]
    if BORDER:
        m_s = m_s & (o_n[None, :] <= (walked.b_key - start)[:, None])
    terms = Terms(b_own, tile.terms.delta, tile.terms.gate, tile.terms.scale_log2)
    own = QueryTile(tile.q, tile.grad, terms)
    return _query_step(own, b_k, b_v, b_dq, m_s, masked)


@triton.jit
def _shared_gradient(
    tile,
    b_dq,
    walked,
    head,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
):
    """Adds the shared blocks of a tile, each in PARTS tiles of keys."""
    num, num_before = tl.load(walked.num), tl.load(walked.num + 1)
    for i in range(num_before * PARTS):  # every row of the tile may see all keys that are read
        b_dq = _shared_step(
            tile,
            b_dq,
            walked,
            head,
            i,
            D,
            BLOCK_N,
            PARTS,
            FULL_BLOCKS,
            BORDER=False,
            POISONED=False,
        )
    num_border = (num - num_before) * PARTS
    _, poisoned = head.poison
    num_clean = num_before * PARTS + clean_steps(poisoned, num_border)
    for i in range(num_before * PARTS, num_clean):
        b_dq = _shared_step(
            tile, b_dq, walked, head, i, D, BLOCK_N, PARTS, FULL_BLOCKS, BORDER=True, POISONED=False
        )
    for i in tl.range(num_clean, num * PARTS, num_stages=1):
        b_dq = _shared_step(
            tile, b_dq, walked, head, i, D, BLOCK_N, PARTS, FULL_BLOCKS, BORDER=True, POISONED=True
        )
    return b_dq


@triton.jit
def _query_gradient_kernel(
    q,  # heads of [R, HQ, D]
    upstream,  # of `Queries`
    k,  # heads of [S, H, D]
    v,  # likewise
    poison,  # of `Keys`
    k_again,  # [S, H, D] k as another pointer: else addresses are kept through all loops, and spill
    k_tma,  # descriptor of k, or None
    v_tma,
    k_cmp,  # [C, H, D], or None without a compressed branch
    v_cmp,  # [C, H, D], likewise
    k_cmp_again,  # [C, H, D], likewise
    poison_cmp,  # [C, H], likewise
    k_cmp_tma,  # descriptor of k_cmp, or None
    v_cmp_tma,
    grad_q,  # [R, HQ, D]
    tiles,  # runs of `Tiles`
    shared,  # of `Plan`, None without a selected branch
    num_scattered,  # [R, H], likewise
    rows,  # of `StreamIndex`
    blocks,  # likewise
    num_keys,
    window,  # None without a window branch
    scale,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PARTS: tl.constexpr,
    BOUND: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    FULL_BLOCKS: tl.constexpr,
):
    HQ, H, grad, poisoned = q[3], k[3], upstream[0], poison[1]
    k_again = (k_again, k[1], k[2], H)
    row_key, _, row_begin, row_end = rows
    block_start, _, num_blocks = blocks
    cuts: tl.constexpr = TILE // ROWS  # of a tile of the plan
    i_unit = tl.num_programs(0) - 1 - tl.program_id(0)  # late rows see the most blocks
    i_tile, i_h, i_cut = i_unit // (H * cuts), i_unit % H, i_unit // H % cuts
    first_row, num_rows = tile_rows(tiles, i_tile, TILE)
    num_rows = tl.minimum(num_rows - i_cut * ROWS, ROWS)
    if num_rows <= 0:
        return
    first_row += i_cut * ROWS
    o_m, o_d = tl.arange(0, BLOCK_M), tl.arange(0, triton.next_power_of_2(D))
    o_t, o_g = o_m // G, o_m % G  # query and head of each row of the tile
    m_row = (o_t < ROWS) & (o_t < num_rows)
    base = first_row.to(tl.int64)
    o_hq = base * HQ + i_h * G + (o_t * HQ + o_g)
    b_q = load_group(q, first_row, i_h * G, o_t, o_g, m_row, o_d, D)
    o_x = o_hq[:, None] * D + o_d[None, :]
    b_do = load_rows(grad + o_x, m_row, o_d, D)
    b_dq = tl.zeros(b_q.shape, tl.float32)
    key = tl.load(row_key + first_row)  # the keys of a tile's rows are consecutive
    if k_cmp is not None:
        tile = QueryTile(b_q, b_do, load_terms(upstream, o_hq, m_row, 0))
        begin = tl.load(row_begin + first_row)
        b_end = tl.load(row_end + first_row + o_t, mask=m_row, other=0)
        all_seen = tl.maximum(tl.load(row_end + first_row) - begin, 0) // BLOCK_N * BLOCK_N
        seen = Seen(
            low=tl.zeros([BLOCK_M], tl.int32) + begin,
            high=b_end,
            begin=begin,
            all_begin=begin,
            all_end=begin + all_seen,
            end=tl.load(row_end + first_row + num_rows - 1),
        )
        head = KeyHead(
            k=(k_cmp, H * D, D, H),
            v=(v_cmp, H * D, D, H),
            k_again=(k_cmp_again, H * D, D, H),
            poison=(poison_cmp, poisoned),
            k_tma=k_cmp_tma,
            v_tma=v_cmp_tma,
            num=num_blocks,
            i_h=i_h,
        )
        b_dq = _interval_gradient(tile, b_dq, seen, head, D, BLOCK_N)
    if window is not None:
        tile = QueryTile(b_q, b_do, load_terms(upstream, o_hq, m_row, 2))
        sample = tl.load(block_start + tl.load(row_begin + first_row))
        begin = tl.maximum(key - window + 1, sample)
        all_begin = tl.maximum(tl.minimum(key + num_rows - window, key + 1), begin)
        seen = Seen(
            low=tl.maximum(key + o_t - window + 1, sample),
            high=key + o_t + 1,
            begin=begin,
            all_begin=all_begin,
            all_end=all_begin + (key + 1 - all_begin) // BLOCK_N * BLOCK_N,
            end=key + num_rows,
        )
        head = KeyHead(k, v, k_again, poison, k_tma, v_tma, num_keys, i_h)
        b_dq = _interval_gradient(tile, b_dq, seen, head, D, BLOCK_N)
    if shared is not None:
        tile = QueryTile(b_q, b_do, load_terms(upstream, o_hq, m_row, 1))
        o_tile = i_tile.to(tl.int64) * H + i_h
        plan_start, plan_size, plan_rows, num_shared = shared
        walked = Walked(
            plan_start + o_tile * BOUND,
            plan_size + o_tile * BOUND,
            plan_rows + o_tile * BOUND,
            num_shared + o_tile * 2,
            b_key=key + o_t,
            b_bit=i_cut * ROWS + o_t,
            end=key + num_rows,
        )
        head = KeyHead(k, v, k_again, poison, k_tma, v_tma, num_keys, i_h)
        b_dq = _shared_gradient(tile, b_dq, walked, head, D, BLOCK_S, PARTS, FULL_BLOCKS)
    b_dq *= scale
    if shared is not None:
        b_num = tl.load(num_scattered + (base + o_t) * H + i_h, mask=m_row, other=0)
        b_dq += load_rows(grad_q + o_x, b_num > 0, o_d, D).to(tl.float32)
    store_rows(grad_q + o_x, b_dq, m_row, o_d, D)


def query_gradient(
    queries: Queries,
    keys: Keys,
    means: Keys | None,
    grad_q: Tensor,
    tiles: Tiles,
    plan: Plan | None,
    index: StreamIndex,
    *,
    window_size: int | None,
    tuning: Tuning,
) -> None:
    """Completes grad_q `[R, HQ, D]`.

    Args:
        queries: and what comes back to them.
        keys: of the stream.
        means: of its blocks, None without a compressed branch.
        grad_q: holds what the scattered pairs of the plan gave; updated.
        tiles: of the plan, or of as many rows.
        plan: of these tiles, None without a selected branch.
        index: of these rows and keys.
        window_size: None without a window branch.
        tuning: how; a tile of this kernel may be a part of a tile of the plan.
    """
    num_keys, num_kv_heads, dim = keys.k.shape
    group = queries.q.shape[1] // num_kv_heads
    config = tuning.query_gradient
    block_s = tuning.selected.block_n  # tokens of the largest block, as a power of two
    rows = rows_of_tile(group, config.block_m, most=tiles.size)
    of_keys = (keys.k, config.block_n), (keys.v, config.block_n)
    compressed: tuple[Any, ...] = (None,) * 6
    if means is not None:
        of_means = (means.k, config.block_n), (means.v, config.block_n)
        pointers = means.k, means.v, means.k, means.poison
        compressed = (*pointers, *descriptors(*of_means, tma=config.tma))
    _query_gradient_kernel[(tiles.num * num_kv_heads * (tiles.size // rows),)](
        *queries.arguments,
        *keys.arguments,
        keys.k,
        *descriptors(*of_keys, tma=config.tma and block_s >= config.block_n),
        *compressed,
        grad_q,
        tiles.runs,
        None if plan is None else plan.shared,
        None if plan is None else plan.num_scattered,
        index.rows,
        index.blocks,
        num_keys,
        window_size,
        dim**-0.5,
        G=group,
        D=dim,
        BLOCK_M=max(16, triton.next_power_of_2(rows * group)),
        BLOCK_N=config.block_n,
        BLOCK_S=min(block_s, config.block_n),
        PARTS=max(1, block_s // config.block_n),
        BOUND=1 if plan is None else plan.start.shape[-1],
        TILE=tiles.size,
        ROWS=rows,
        FULL_BLOCKS=index.uniform and index.max_size == block_s,
        **config.launch,
    )
