"""The backward pass of NSA: what every line needs, then dQ row by row and dK, dV block by block.

For a branch with gate g, weights P and output o, and the gradient dO of the gated sum:
dg = dO o, dV = (g P)^T dO, dS = g P (dO V^T - dg), dQ = scale dS K, dK = scale dS^T Q.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import is_any, load_rows, poison_of
from videonsa.ops.triton.forward import Branches, Options, num_multiprocessors
from videonsa.ops.triton.grad_compressed import compressed_gradients
from videonsa.ops.triton.grad_keys import block_gradients
from videonsa.ops.triton.grad_pairs import pair_gradients
from videonsa.ops.triton.grad_query import query_gradient
from videonsa.ops.triton.grad_sum import sum_gradients
from videonsa.ops.triton.index import StreamIndex, row_tiles
from videonsa.ops.triton.inverse import invert_selection
from videonsa.ops.triton.pool import pool
from videonsa.ops.triton.selected import plan_tiles
from videonsa.ops.triton.tuning import Tuning, rows_of_tile


class Gradients(NamedTuple):
    """Of the inputs of `nsa_forward`, each in its dtype."""

    q: Tensor  # [R, HQ, D]
    k: Tensor  # [S, H, D]
    v: Tensor  # [S, H, D]
    gates: Tensor  # [R, HQ, 3]


@triton.jit
def _query_poison_kernel(
    q,  # [R, HQ, D]
    poison,  # [R, HQ]
    num_lines,
    HQ,
    stride_qr,
    stride_qh,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    o_line = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_line = o_line < num_lines
    p_q = q + o_line // HQ * stride_qr + o_line % HQ * stride_qh
    b_q = load_rows(p_q[:, None] + o_d[None, :], m_line, o_d, D, BLOCK_D)
    tl.store(poison + o_line, poison_of(b_q.to(tl.float32)), mask=m_line)


@triton.jit
def _store_terms(
    b_do,
    b_poison,
    o,
    lse,
    p_gate,
    p_grad,
    p_terms,
    o_x,
    o_line,
    m_line,
    o_d,
    num_lines,
    D,
    BLOCK_D,
):
    """LSE in base 2, delta and gate of each line; delta is the gradient of the gate too.

    The LSE is +inf where the line has no key, and NaN where it is poisoned: returns where.
    """
    if o is None:
        b_delta = tl.zeros(o_line.shape, tl.float32)
        m_bad = b_delta != b_delta
    else:
        b_o = load_rows(o + o_x, m_line, o_d, D, BLOCK_D).to(tl.float32)
        b_delta = tl.sum(b_do * b_o, 1)
        b_lse = tl.load(lse + o_line, mask=m_line, other=0.0) * 1.4426950408889634
        b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse)
        b_lse += b_poison + b_delta * 0.0  # what is not finite in b_do is so in b_delta
        m_bad = b_lse != b_lse
        b_gate = tl.load(p_gate, mask=m_line, other=0.0).to(tl.float32)
        tl.store(p_terms + o_line, b_lse, mask=m_line)
        tl.store(p_terms + num_lines + o_line, b_delta, mask=m_line)
        tl.store(p_terms + 2 * num_lines + o_line, b_gate, mask=m_line)
    tl.store(p_grad, b_delta.to(p_grad.dtype.element_ty), mask=m_line)
    return m_bad


@triton.jit
def _terms_kernel(
    grad,  # [R, HQ, D]
    poison,  # [R, HQ]
    poisoned,  # [1]
    o_cmp,  # [R, HQ, D] or None, as all that follow
    o_slc,
    o_win,
    lse_cmp,  # [R, HQ]
    lse_slc,
    lse_win,
    gates,  # [R, HQ, 3]
    grad_gates,  # [R, HQ, 3]
    terms,  # [3, 3, R, HQ]
    num_lines,
    HQ,
    stride_gr,
    stride_gh,
    stride_gb,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    o_line = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_line = o_line < num_lines
    o_x = o_line[:, None] * D + o_d[None, :]
    p_gate = gates + o_line // HQ * stride_gr + o_line % HQ * stride_gh
    p_grad = grad_gates + o_line * 3
    b_poison = tl.load(poison + o_line, mask=m_line, other=0.0)
    b_do = load_rows(grad + o_x, m_line, o_d, D, BLOCK_D).to(tl.float32)
    m_bad = _store_terms(
        b_do,
        b_poison,
        o_cmp,
        lse_cmp,
        p_gate,
        p_grad,
        terms,
        o_x,
        o_line,
        m_line,
        o_d,
        num_lines,
        D,
        BLOCK_D,
    )
    p_gate += stride_gb
    p_terms = terms + 3 * num_lines
    m_bad |= _store_terms(
        b_do,
        b_poison,
        o_slc,
        lse_slc,
        p_gate,
        p_grad + 1,
        p_terms,
        o_x,
        o_line,
        m_line,
        o_d,
        num_lines,
        D,
        BLOCK_D,
    )
    p_gate += stride_gb
    p_terms += 3 * num_lines
    m_bad |= _store_terms(
        b_do,
        b_poison,
        o_win,
        lse_win,
        p_gate,
        p_grad + 2,
        p_terms,
        o_x,
        o_line,
        m_line,
        o_d,
        num_lines,
        D,
        BLOCK_D,
    )
    tl.store(poisoned, 1, mask=is_any(m_bad))


def branch_terms(
    grad: Tensor, q: Tensor, saved: Branches, gates: Tensor, *, branches: tuple[str, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """What the other kernels need of every line, and the gradient of the gates.

    Args:
        grad: `[R, HQ, D]` contiguous, of the output.
        q: `[R, HQ, D]`.
        saved: outputs and LSEs of the branches.
        gates: `[R, HQ, 3]`.
        branches: those that take part in the sum.

    Returns:
        Terms `[3, 3, R, HQ]` float32 (branch; LSE in base 2, delta, gate); `[1]` int32, not 0
        where an LSE is NaN, as it is where q, the gradient, or a key that the line sees is not
        finite; and the gradient of the gates `[R, HQ, 3]`.
    """
    num_rows, num_heads, dim = grad.shape
    num_lines = num_rows * num_heads
    terms = torch.empty((3, 3, num_rows, num_heads), dtype=torch.float32, device=grad.device)
    grad_gates = torch.empty((num_rows, num_heads, 3), dtype=gates.dtype, device=grad.device)
    use = [name in branches for name in ("compressed", "selected", "window")]
    outputs = (saved.o_cmp, saved.o_slc, saved.o_win)
    lses = (saved.lse_cmp, saved.lse_slc, saved.lse_win)
    poison = torch.empty((num_rows, num_heads), dtype=torch.float32, device=grad.device)
    poisoned = torch.zeros(1, dtype=torch.int32, device=grad.device)
    lines = 64
    grid = (triton.cdiv(num_lines, lines),)
    tile = {"D": dim, "BLOCK_D": triton.next_power_of_2(dim), "BLOCK_M": lines, "num_warps": 4}
    _query_poison_kernel[grid](q, poison, num_lines, num_heads, *q.stride()[:2], **tile)
    _terms_kernel[grid](
        grad,
        poison,
        poisoned,
        *(x if used else None for x, used in zip(outputs, use, strict=True)),
        *(x if used else None for x, used in zip(lses, use, strict=True)),
        gates,
        grad_gates,
        terms,
        num_lines,
        num_heads,
        *gates.stride(),
        **tile,
    )
    return terms, poisoned, grad_gates


def nsa_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    saved: Branches,
    index: StreamIndex,
    *,
    options: Options,
    tuning: Tuning,
) -> Gradients:
    """Gradients of all rows of all samples; none goes through the selection.

    Args:
        grad: `[R, HQ, D]` of the gated sum.
        q: `[R, HQ, D]`, as all inputs those of `nsa_forward`.
        k: `[S, H, D]`.
        v: `[S, H, D]`.
        gates: `[R, HQ, 3]`.
        saved: what `nsa_forward` returned with `return_branches`.
        index: of these rows and keys.
        options: what was computed.
        tuning: how to.
    """
    group = q.shape[1] // k.shape[1]
    window_size = options.window_size if "window" in options.branches else None
    selected = saved.selected if "selected" in options.branches else None
    grad = grad.contiguous()
    terms, poisoned, grad_gates = branch_terms(grad, q, saved, gates, branches=options.branches)
    grad_q = torch.empty_like(grad)
    block_s = tuning.selected.block_n
    tiles = row_tiles(index, rows_of_tile(group, tuning.selected.block_m), aligned=True)
    plan = None
    if selected is not None:
        plan = plan_tiles(selected, tiles, index, min_shared=tuning.min_shared, block_n=block_s)
        pair_gradients(
            q,
            k,
            v,
            grad,
            terms,
            grad_q,
            tiles,
            plan,
            index,
            partial_bytes=tuning.partial_bytes,
            num_multiprocessors=num_multiprocessors(q.device),
            config=tuning.pair_gradient,
        )
    (keys, means), sums_cmp = pool(k, v, index), None
    if "compressed" in options.branches:
        sums_cmp = compressed_gradients(
            q,
            means.k,
            means.v,
            grad,
            terms,
            poisoned,
            index,
            splits=tuning.splits,
            config=tuning.compressed_gradient,
        )
    query_gradient(
        q,
        keys,
        means,
        grad,
        terms,
        grad_q,
        tiles,
        plan,
        index,
        use_compressed=sums_cmp is not None,
        window_size=window_size,
        config=tuning.query_gradient,
        block_s=block_s,
    )
    inverse = invert_selection(selected, index, num_kv_heads=k.shape[1])
    sums = block_gradients(
        q,
        k,
        v,
        grad,
        terms,
        poisoned,
        inverse,
        index,
        window_size=window_size,
        config=tuning.block_gradient,
        block_s=block_s,
    )
    return Gradients(grad_q, *sum_gradients(sums, sums_cmp, inverse, index, k), grad_gates)
