"""What the kernels of the backward pass read of every query head: LSE, delta and gate by branch."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.spec import BRANCHES
from videonsa.ops.triton.common import LOG2_E, heads, is_any, load_rows, poison_of
from videonsa.ops.triton.forward import Branches


class Queries(NamedTuple):
    """Queries and what comes back to them."""

    q: Tensor  # [R, HQ, D]
    grad: Tensor  # [R, HQ, D] contiguous, of the gated sum
    terms: Tensor  # [3, 3, R, HQ] float32: branch; LSE in base 2, delta, gate
    poisoned: Tensor  # [1] int32
    """Not 0 where an LSE is NaN, as it is where q, the gradient, or a key that the query sees is
    not finite."""

    @property
    def arguments(self) -> tuple[Any, Any]:
        """Two arguments of a kernel: `heads` of q, and what comes back to them (upstream).

        The latter is (grad, terms, R HQ, poisoned, scale of the scores for base 2).
        """
        num_rows, num_heads, dim = self.q.shape
        num, scale_log2 = num_rows * num_heads, dim**-0.5 * LOG2_E
        return heads(self.q), (self.grad, self.terms, num, self.poisoned, scale_log2)


class Terms(NamedTuple):
    """What gradients are made of beside q and grad: one branch, for the rows [M] of a tile."""

    lse: Tensor
    delta: Tensor
    gate: Tensor
    scale_log2: float


class QueryTile(NamedTuple):
    """Rows of a tile and what comes back to them through one branch."""

    q: Tensor  # [M, D]
    grad: Tensor  # [M, D]
    terms: Terms


@triton.jit
def load_terms(upstream, o_hq, m_row, BRANCH: tl.constexpr):
    """`Terms` of the query heads o_hq; an LSE of NaN tells that q or the gradient is not finite.

    Masked rows get +inf, so that their weights are 0.
    """
    _, terms, num_hq, _, scale_log2 = upstream
    p_terms = terms + 3 * BRANCH * num_hq + o_hq
    b_lse = tl.load(p_terms, mask=m_row, other=float("inf"))
    b_delta = tl.load(p_terms + num_hq, mask=m_row, other=0.0)
    b_gate = tl.load(p_terms + 2 * num_hq, mask=m_row, other=0.0)
    return Terms(b_lse, b_delta, b_gate, scale_log2)


@triton.jit
def gated_weights(b_s, b_dp, terms):
    """Gated weights g P, and g dS = g P (dP - delta), of scores and dP = dO V^T [M, N]."""
    b_lse, b_delta, b_gate = terms.lse[:, None], terms.delta[:, None], terms.gate[:, None]
    b_p = tl.exp2(b_s * terms.scale_log2 - b_lse) * b_gate
    return b_p, b_p * (b_dp - b_delta)


@triton.jit
def _terms_kernel(
    q,  # heads of [R, HQ, D]
    upstream,  # of `Queries`; terms and poisoned are written
    outputs,  # [R, HQ, D] of each branch that takes part, else None
    lses,  # [R, HQ], likewise
    gates,  # heads of [R, HQ, 3]
    stride_gate,  # of its last dimension
    grad_gates,  # [R, HQ, 3]
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Terms of BLOCK_M query heads; delta is the gradient of the gate too.

    An LSE is +inf where the query sees no key, and NaN where it is poisoned.
    """
    p_q, stride_qn, stride_qh, HQ = q
    grad, terms, num_hq, poisoned, _ = upstream
    p_gate, stride_gn, stride_gh, _ = gates
    o_hq = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, triton.next_power_of_2(D))
    m_row = o_hq < num_hq
    p_q = p_q + o_hq // HQ * stride_qn + o_hq % HQ * stride_qh
    b_q = load_rows(p_q[:, None] + o_d[None, :], m_row, o_d, D)
    b_poison = poison_of(b_q.to(tl.float32))
    o_x = o_hq[:, None] * D + o_d[None, :]
    b_do = load_rows(grad + o_x, m_row, o_d, D).to(tl.float32)
    p_gate = p_gate + o_hq // HQ * stride_gn + o_hq % HQ * stride_gh
    m_bad = tl.zeros([BLOCK_M], tl.int1)
    for branch in tl.static_range(3):
        b_delta = tl.zeros([BLOCK_M], tl.float32)
        if outputs[branch] is not None:
            b_o = load_rows(outputs[branch] + o_x, m_row, o_d, D).to(tl.float32)
            b_delta = tl.sum(b_do * b_o, 1)
            b_lse = tl.load(lses[branch] + o_hq, mask=m_row, other=0.0) * 1.4426950408889634
            b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse)
            b_lse += b_poison + b_delta * 0.0  # what is not finite in b_do is so in b_delta
            m_bad |= b_lse != b_lse
            b_gate = tl.load(p_gate + branch * stride_gate, mask=m_row, other=0.0)
            p_terms = terms + 3 * branch * num_hq + o_hq
            tl.store(p_terms, b_lse, mask=m_row)
            tl.store(p_terms + num_hq, b_delta, mask=m_row)
            tl.store(p_terms + 2 * num_hq, b_gate.to(tl.float32), mask=m_row)
        p_grad = grad_gates + o_hq * 3 + branch
        tl.store(p_grad, b_delta.to(p_grad.dtype.element_ty), mask=m_row)
    tl.store(poisoned, 1, mask=is_any(m_bad))


def query_terms(
    q: Tensor, grad: Tensor, saved: Branches, gates: Tensor, *, branches: tuple[str, ...]
) -> tuple[Queries, Tensor]:
    """What the other kernels need of every query head, and the gradient of the gates `[R, HQ, 3]`.

    Args:
        q: `[R, HQ, D]`.
        grad: `[R, HQ, D]`, of the output.
        saved: outputs and LSEs of the branches.
        gates: `[R, HQ, 3]`.
        branches: those that take part in the sum.
    """
    num_rows, num_heads, dim = q.shape
    terms = torch.empty((3, 3, num_rows, num_heads), dtype=torch.float32, device=q.device)
    poisoned = torch.zeros(1, dtype=torch.int32, device=q.device)
    queries = Queries(q, grad.contiguous(), terms, poisoned)
    grad_gates = torch.empty((num_rows, num_heads, 3), dtype=gates.dtype, device=q.device)
    outputs = saved.o_cmp, saved.o_slc, saved.o_win
    lses = saved.lse_cmp, saved.lse_slc, saved.lse_win
    used = [name in branches for name in BRANCHES]
    block_m = 64
    _terms_kernel[(triton.cdiv(num_rows * num_heads, block_m),)](
        *queries.arguments,
        tuple(x if use else None for x, use in zip(outputs, used, strict=True)),
        tuple(x if use else None for x, use in zip(lses, used, strict=True)),
        heads(gates),
        gates.stride(2),
        grad_gates,
        D=dim,
        BLOCK_M=block_m,
        num_warps=4,
    )
    return queries, grad_gates
