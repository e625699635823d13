"""Gradients of keys and values: every block gathers the rows that selected it or are near it.

A program keeps the sums of one tile of keys in registers while rows pass by. Long lists of rows are
shared out; their sums go to a buffer and `grad_sum` adds them in order: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import Keys, load_rows, needs_wide_offsets, scores, store_rows
from videonsa.ops.triton.grad_terms import Queries, QueryTile, gated_weights, load_terms
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.inverse import Inverse
from videonsa.ops.triton.tuning import Tuning


@triton.jit
def key_step(b_k, b_v, b_dk, b_dv, tile, m_s, MASK: tl.constexpr, POISONED: tl.constexpr):
    """b_dk and b_dv [D, N] float32 with one more tile of rows; m_s [M, N] where MASK.

    Where POISONED, rows that are not finite are 0 there, and the LSE of some is NaN.
    """
    b_s = scores(tile.q, b_k)
    if MASK and not POISONED:
        b_s = tl.where(m_s, b_s, float("-inf"))
    b_dp = scores(tile.grad, b_v)
    # Terms of a row cost few registers where they lie along the rows of the product.
    b_p, b_ds = gated_weights(b_s, b_dp, tile.terms)
    if MASK and POISONED:
        b_p, b_ds = tl.where(m_s, b_p, 0.0), tl.where(m_s, b_ds, 0.0)
    b_dv = tl.dot(tl.trans(tile.grad), b_p.to(tile.grad.dtype), b_dv, input_precision="ieee")
    b_dk = tl.dot(tl.trans(tile.q), b_ds.to(tile.q.dtype), b_dk, input_precision="ieee")
    return b_dk, b_dv


@triton.jit
def _gathered(
    q,
    upstream,
    b_row,  # [M] query of each row of the tile
    i_head,  # [M] its head
    m_row,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    BRANCH: tl.constexpr,
    POISONED: tl.constexpr,
):
    """`QueryTile` with rows from anywhere."""
    grad = upstream[0]
    p_q, stride_n, stride_h, HQ = q
    o_d = tl.arange(0, triton.next_power_of_2(D))
    if WIDE:
        b_row = b_row.to(tl.int64)
    o_hq = b_row * HQ + i_head
    o_q = b_row * stride_n + i_head * stride_h
    terms = load_terms(upstream, o_hq, m_row, BRANCH)
    if POISONED:
        m_row = m_row & (terms.lse == terms.lse)
    b_q = load_rows(p_q + (o_q[:, None] + o_d[None, :]), m_row, o_d, D)
    b_do = load_rows(grad + (o_hq[:, None] * D + o_d[None, :]), m_row, o_d, D)
    return QueryTile(b_q, b_do, terms)


@triton.jit
def _block_gradient_kernel(
    q,  # heads of [R, HQ, D]
    upstream,  # of `Queries`
    k,  # heads of [S, H, D]
    v,  # likewise
    sums,  # [items, 2, BLOCK_S, D] float32
    inverse,  # of the selection
    blocks,  # of `StreamIndex`
    window_rows,  # [C] first row that may see keys of the block in its window, and one past them
    row_key,  # [R]
    num_keys,
    window,  # None without a window branch
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    WIDE: tl.constexpr,
    POISONED: tl.constexpr,
):
    poisoned = upstream[3]
    if (tl.load(poisoned) != 0) != POISONED:
        return
    p_k, stride_kn, stride_kh, H = k
    p_v, stride_vn, stride_vh, _ = v
    list_rows, first_item, item_list, item_first, item_rows = inverse
    block_start, block_size, num_blocks = blocks
    i_item, part = tl.program_id(0), tl.program_id(1) * BLOCK_N
    i_list = tl.load(item_list + i_item)
    if i_list >= H * num_blocks:
        return
    i_h, i_c = i_list // num_blocks, i_list % num_blocks
    size = tl.load(block_size + i_c)
    if part >= tl.maximum(size, 1):
        return
    step: tl.constexpr = BLOCK_M // G
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, i_head = o_m // G, i_h * G + o_m % G
    start = tl.load(block_start + i_c)
    o_key = start + part + o_n
    m_n = (part + o_n < size) & (o_key < num_keys)
    p_k = p_k + o_key.to(tl.int64)[:, None] * stride_kn + i_h * stride_kh + o_d[None, :]
    p_v = p_v + o_key.to(tl.int64)[:, None] * stride_vn + i_h * stride_vh + o_d[None, :]
    b_k, b_v = load_rows(p_k, m_n, o_d, D), load_rows(p_v, m_n, o_d, D)
    b_dk = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    b_dv = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    is_first = i_item == tl.load(first_item + i_list)
    num, p_rows = tl.load(item_rows + i_item), list_rows + tl.load(item_first + i_item)
    # The rows of the block itself come first in its list: only they need the causal mask.
    num_own = tl.where(is_first, tl.cdiv(tl.minimum(num, size), step) * step, 0)
    for first in range(0, num_own, step):
        m_row = (o_t < step) & (first + o_t < num)
        b_row = tl.load(p_rows + first + o_t, mask=m_row, other=0)
        b_own = tl.load(row_key + b_row, mask=m_row, other=-1)
        m_s = o_key[None, :] <= b_own[:, None]
        tile = _gathered(q, upstream, b_row, i_head, m_row, D, WIDE, BRANCH=1, POISONED=POISONED)
        b_dk, b_dv = key_step(b_k, b_v, b_dk, b_dv, tile, m_s, MASK=True, POISONED=POISONED)
    for first in range(num_own, num, step):
        m_row = (o_t < step) & (first + o_t < num)
        b_row = tl.load(p_rows + first + o_t, mask=m_row, other=0)
        tile = _gathered(q, upstream, b_row, i_head, m_row, D, WIDE, BRANCH=1, POISONED=False)
        b_dk, b_dv = key_step(b_k, b_v, b_dk, b_dv, tile, m_row, MASK=False, POISONED=False)
    if window is not None:
        first_row, stop_row = tl.load(window_rows[0] + i_c), tl.load(window_rows[1] + i_c)
        key = tl.load(row_key + first_row, mask=first_row < stop_row, other=0)
        stop_row = tl.minimum(stop_row, first_row + (start + size - 1 + window - key))
        stop_row = tl.where(is_first, stop_row, first_row)
        for first in range(first_row, stop_row, step):
            m_row = (o_t < step) & (first + o_t < stop_row)
            b_behind = (key + (first - first_row) + o_t)[:, None] - o_key[None, :]
            m_s = (b_behind >= 0) & (b_behind < window)
            tile = _gathered(
                q, upstream, first + o_t, i_head, m_row, D, WIDE, BRANCH=2, POISONED=POISONED
            )
            b_dk, b_dv = key_step(b_k, b_v, b_dk, b_dv, tile, m_s, MASK=True, POISONED=POISONED)
    p_sum = sums + i_item.to(tl.int64) * (2 * BLOCK_S * D)
    p_sum += (part + o_n)[:, None] * D + o_d[None, :]
    store_rows(p_sum, tl.trans(b_dk), m_n, o_d, D)
    store_rows(p_sum + BLOCK_S * D, tl.trans(b_dv), m_n, o_d, D)


def block_gradients(
    queries: Queries,
    keys: Keys,
    inverse: Inverse,
    index: StreamIndex,
    *,
    window_size: int | None,
    tuning: Tuning,
) -> Tensor:
    """Sums over the rows that selected a block or have it in their window, item by item.

    Args:
        queries: and what comes back to them.
        keys: of the stream.
        inverse: of the selection.
        index: of these rows and keys.
        window_size: None without a window branch.
        tuning: how.

    Returns:
        `[items, 2, block size, D]` float32: dK before scaling, and dV.
    """
    dim, num_items, num_kv_heads = queries.q.shape[2], len(inverse.item_list), keys.k.shape[1]
    config = tuning.block_gradient
    block_s = tuning.selected.block_n  # tokens of the largest block, as a power of two
    sums = torch.empty((num_items, 2, block_s, dim), dtype=torch.float32, device=queries.q.device)
    k, v, _ = keys.arguments
    block_n, window_rows = min(block_s, config.block_n), _window_rows(index)
    for is_poisoned in (False, True):  # one of the two returns at once
        _block_gradient_kernel[(num_items, block_s // block_n)](
            *queries.arguments,
            k,
            v,
            sums,
            tuple(inverse),
            index.blocks,
            window_rows,
            index.row_key,
            len(keys.k),
            window_size,
            G=queries.q.shape[1] // num_kv_heads,
            D=dim,
            BLOCK_M=config.block_m,
            BLOCK_N=block_n,
            BLOCK_S=block_s,
            WIDE=needs_wide_offsets(queries.q) or needs_wide_offsets(queries.grad),
            POISONED=is_poisoned,
            **config.launch,
        )
    return sums


def _window_rows(index: StreamIndex) -> tuple[Tensor, Tensor]:
    """First row that may see keys of each block in its window, and one past its sample's last."""
    block = torch.arange(len(index.block_start), dtype=torch.int32, device=index.row_key.device)
    first = torch.searchsorted(index.row_block, block, out_int32=True)
    sample = torch.searchsorted(index.sample_rows, first, right=True) - 1
    stop = index.sample_rows[(sample + 1).clamp(max=len(index.sample_rows) - 1)]
    # Behind the last row of a sample comes the next sample.
    is_own = index.row_begin[first.clamp(max=len(index.row_key) - 1)] <= block
    return first, torch.where(is_own, stop, 0)
