"""Gradients of keys and values: every block gathers the rows that selected it or are near it.

A program keeps the sums of one tile of keys in registers while rows pass by. Long lists of rows are
shared out; their sums go to a buffer and `grad_sum` adds them in order: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    gated_weights,
    load_rows,
    load_terms,
    needs_wide_offsets,
    scores,
    store_rows,
)
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.inverse import Inverse
from videonsa.ops.triton.tuning import Config


@triton.jit
def key_step(
    b_k,
    b_v,
    b_dk,
    b_dv,
    b_q,
    b_do,
    b_lse,
    b_delta,
    b_gate,
    m_s,
    scale_log2,
    MASK: tl.constexpr,
    POISONED: tl.constexpr,
):
    """b_dk and b_dv [D, N] float32 with one more tile of lines; m_s [M, N] where MASK.

    Where POISONED, lines that are not finite are 0 there, and the LSE of some is NaN.
    """
    b_s = scores(b_q, b_k)
    if MASK and not POISONED:
        b_s = tl.where(m_s, b_s, float("-inf"))
    b_dp = scores(b_do, b_v)
    # Terms of a line cost few registers where lines are rows.
    b_p, b_ds = gated_weights(
        b_s, b_dp, b_lse[:, None], b_delta[:, None], b_gate[:, None], scale_log2
    )
    if MASK and POISONED:
        b_p, b_ds = tl.where(m_s, b_p, 0.0), tl.where(m_s, b_ds, 0.0)
    b_dv = tl.dot(tl.trans(b_do), b_p.to(b_do.dtype), b_dv, input_precision="ieee")
    b_dk = tl.dot(tl.trans(b_q), b_ds.to(b_q.dtype), b_dk, input_precision="ieee")
    return b_dk, b_dv


@triton.jit
def _gathered_step(
    b_k,
    b_v,
    b_dk,
    b_dv,
    b_row,  # [M] row of each line
    m_line,
    m_s,
    q,
    grad,
    terms,
    i_head,  # [M] query head of each line
    num_lines,
    HQ,
    stride_qr,
    stride_qh,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    BRANCH: tl.constexpr,
    MASK: tl.constexpr,
    POISONED: tl.constexpr,
):
    """`key_step` with lines from anywhere."""
    o_d = tl.arange(0, BLOCK_D)
    if WIDE:
        b_row = b_row.to(tl.int64)
    o_line = b_row * HQ + i_head
    o_q = b_row * stride_qr + i_head * stride_qh
    b_lse, b_delta, b_gate = load_terms(terms, o_line, m_line, num_lines, BRANCH)
    if POISONED:
        m_line = m_line & (b_lse == b_lse)
    b_q = load_rows(q + (o_q[:, None] + o_d[None, :]), m_line, o_d, D, BLOCK_D)
    b_do = load_rows(grad + (o_line[:, None] * D + o_d[None, :]), m_line, o_d, D, BLOCK_D)
    return key_step(
        b_k, b_v, b_dk, b_dv, b_q, b_do, b_lse, b_delta, b_gate, m_s, scale_log2, MASK, POISONED
    )


@triton.jit
def _block_gradient_kernel(
    q,  # [R, HQ, D]
    k,  # [S, H, D]
    v,  # [S, H, D]
    grad,  # [R, HQ, D]
    terms,  # [3, 3, R, HQ]
    poisoned,  # [1]
    sums,  # [items, 2, BLOCK_S, D] float32
    rows,  # lists of rows
    first_item,  # [lists + 1]
    item_list,  # [items]
    item_first,  # [items]
    item_rows,  # [items]
    block_start,  # [C]
    block_size,  # [C]
    window_first,  # [C] first row that may see keys of the block in its window
    window_stop,  # [C] one past the last row of the block's sample
    row_key,  # [R]
    num_lists,
    num_blocks,
    num_keys,
    num_lines,
    stride_qr,
    stride_qh,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    window,
    scale_log2,
    HQ,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    USE_WIN: tl.constexpr,
    WIDE: tl.constexpr,
    POISONED: tl.constexpr,
):
    if (tl.load(poisoned) != 0) != POISONED:
        return
    i_item, part = tl.program_id(0), tl.program_id(1) * BLOCK_N
    i_list = tl.load(item_list + i_item)
    if i_list >= num_lists:
        return
    i_h, i_c = i_list // num_blocks, i_list % num_blocks
    size = tl.load(block_size + i_c)
    if part >= tl.maximum(size, 1):
        return
    step: tl.constexpr = BLOCK_M // G
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, i_head = o_m // G, i_h * G + o_m % G
    start = tl.load(block_start + i_c)
    o_key = start + part + o_n
    m_n = (part + o_n < size) & (o_key < num_keys)
    p_k = k + o_key.to(tl.int64)[:, None] * stride_ks + i_h * stride_kh + o_d[None, :]
    p_v = v + o_key.to(tl.int64)[:, None] * stride_vs + i_h * stride_vh + o_d[None, :]
    b_k, b_v = load_rows(p_k, m_n, o_d, D, BLOCK_D), load_rows(p_v, m_n, o_d, D, BLOCK_D)
    b_dk = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    b_dv = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    is_first = i_item == tl.load(first_item + i_list)
    num, p_rows = tl.load(item_rows + i_item), rows + tl.load(item_first + i_item)
    # The rows of the block itself come first in its list: only they need the causal mask.
    num_own = tl.where(is_first, tl.cdiv(tl.minimum(num, size), step) * step, 0)
    for first in range(0, num_own, step):
        m_line = (o_t < step) & (first + o_t < num)
        b_row = tl.load(p_rows + first + o_t, mask=m_line, other=0)
        b_own = tl.load(row_key + b_row, mask=m_line, other=-1)
        m_s = o_key[None, :] <= b_own[:, None]
        b_dk, b_dv = _gathered_step(
            b_k,
            b_v,
            b_dk,
            b_dv,
            b_row,
            m_line,
            m_s,
            q,
            grad,
            terms,
            i_head,
            num_lines,
            HQ,
            stride_qr,
            stride_qh,
            scale_log2,
            D,
            BLOCK_D,
            WIDE,
            BRANCH=1,
            MASK=True,
            POISONED=POISONED,
        )
    for first in range(num_own, num, step):
        m_line = (o_t < step) & (first + o_t < num)
        b_row = tl.load(p_rows + first + o_t, mask=m_line, other=0)
        b_dk, b_dv = _gathered_step(
            b_k,
            b_v,
            b_dk,
            b_dv,
            b_row,
            m_line,
            m_line,
            q,
            grad,
            terms,
            i_head,
            num_lines,
            HQ,
            stride_qr,
            stride_qh,
            scale_log2,
            D,
            BLOCK_D,
            WIDE,
            BRANCH=1,
            MASK=False,
            POISONED=False,
        )
    if USE_WIN:
        first_row, stop_row = tl.load(window_first + i_c), tl.load(window_stop + i_c)
        key = tl.load(row_key + first_row, mask=first_row < stop_row, other=0)
        stop_row = tl.minimum(stop_row, first_row + (start + size - 1 + window - key))
        stop_row = tl.where(is_first, stop_row, first_row)
        for first in range(first_row, stop_row, step):
            m_line = (o_t < step) & (first + o_t < stop_row)
            b_behind = (key + (first - first_row) + o_t)[:, None] - o_key[None, :]
            m_s = (b_behind >= 0) & (b_behind < window)
            b_dk, b_dv = _gathered_step(
                b_k,
                b_v,
                b_dk,
                b_dv,
                first + o_t,
                m_line,
                m_s,
                q,
                grad,
                terms,
                i_head,
                num_lines,
                HQ,
                stride_qr,
                stride_qh,
                scale_log2,
                D,
                BLOCK_D,
                WIDE,
                BRANCH=2,
                MASK=True,
                POISONED=POISONED,
            )
    p_sum = sums + i_item.to(tl.int64) * (2 * BLOCK_S * D)
    p_sum += (part + o_n)[:, None] * D + o_d[None, :]
    store_rows(p_sum, tl.trans(b_dk), m_n, o_d, D, BLOCK_D)
    store_rows(p_sum + BLOCK_S * D, tl.trans(b_dv), m_n, o_d, D, BLOCK_D)


def block_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    terms: Tensor,
    poisoned: Tensor,
    inverse: Inverse,
    index: StreamIndex,
    *,
    window_size: int | None,
    config: Config,
    block_s: int,
) -> Tensor:
    """Sums over the rows that selected a block or have it in their window, item by item.

    Args:
        q: `[R, HQ, D]`.
        k: `[S, H, D]`.
        v: `[S, H, D]`.
        grad: `[R, HQ, D]` contiguous, of the output.
        terms: `[3, 3, R, HQ]` float32, as `branch_terms` makes them.
        poisoned: `[1]`, likewise.
        inverse: of the selection.
        index: of these rows and keys.
        window_size: None without a window branch.
        config: of the kernel.
        block_s: tokens of the largest block, as a power of two.

    Returns:
        `[items, 2, block_s, D]` float32: dK before scaling, and dV.
    """
    num_rows, num_heads, dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    num_blocks = len(index.block_start)
    num_items = len(inverse.item_list)
    sums = torch.empty((num_items, 2, block_s, dim), dtype=torch.float32, device=q.device)
    block = torch.arange(num_blocks, dtype=torch.int32, device=q.device)
    window_first = torch.searchsorted(index.row_block, block, out_int32=True)
    sample = torch.searchsorted(index.sample_rows, window_first, right=True) - 1
    window_stop = index.sample_rows[(sample + 1).clamp(max=len(index.sample_rows) - 1)]
    # Behind the last row of a sample comes the next sample.
    is_own = index.row_begin[window_first.clamp(max=num_rows - 1)] <= block
    window_stop = torch.where(is_own, window_stop, 0)
    block_n = min(block_s, config.block_n)
    for is_poisoned in (False, True):  # one of the two returns at once
        _block_gradient_kernel[(num_items, block_s // block_n)](
            q,
            k,
            v,
            grad,
            terms,
            poisoned,
            sums,
            *inverse,
            index.block_start,
            index.block_size,
            window_first,
            window_stop,
            index.row_key,
            num_kv_heads * num_blocks,
            num_blocks,
            num_keys,
            num_rows * num_heads,
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            window_size or 0,
            dim**-0.5 * LOG2_E,
            num_heads,
            G=num_heads // num_kv_heads,
            D=dim,
            BLOCK_D=triton.next_power_of_2(dim),
            BLOCK_M=config.block_m,
            BLOCK_N=block_n,
            BLOCK_S=block_s,
            USE_WIN=window_size is not None,
            WIDE=needs_wide_offsets(q) or needs_wide_offsets(grad),
            POISONED=is_poisoned,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            maxnreg=config.maxnreg,
        )
    return sums
