"""The backward pass of NSA: what every query head needs, dQ row by row, dK and dV block by block.

For a branch with gate g, weights P and output o, and the gradient dO of the gated sum:
dg = dO o, dV = (g P)^T dO, dS = g P (dO V^T - dg), dQ = scale dS K, dK = scale dS^T Q.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from videonsa.ops.triton.forward import Branches, Options
from videonsa.ops.triton.grad_compressed import compressed_gradients
from videonsa.ops.triton.grad_keys import block_gradients
from videonsa.ops.triton.grad_pairs import pair_gradients
from videonsa.ops.triton.grad_query import query_gradient
from videonsa.ops.triton.grad_sum import sum_gradients
from videonsa.ops.triton.grad_terms import query_terms
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
        saved: what `nsa_forward` gave and kept of the branches that take part.
        index: of these rows and keys.
        options: what was computed.
        tuning: how to.
    """
    group = q.shape[1] // k.shape[1]
    window_size = options.window_size if "window" in options.branches else None
    selected = saved.selected if "selected" in options.branches else None
    queries, grad_gates = query_terms(q, grad, saved, gates, branches=options.branches)
    keys, means = pool(k, v, index)
    grad_q = torch.empty_like(queries.grad)
    tiles = row_tiles(index, rows_of_tile(group, tuning.selected.block_m), aligned=True)
    plan = sums_cmp = None
    if selected is not None:
        plan = plan_tiles(
            selected, tiles, index, min_shared=tuning.min_shared, block_n=tuning.selected.block_n
        )
        pair_gradients(queries, keys, grad_q, tiles, plan, index, tuning=tuning)
    if "compressed" in options.branches:
        sums_cmp = compressed_gradients(queries, means, index, tuning=tuning)
    query_gradient(
        queries,
        keys,
        means if "compressed" in options.branches else None,
        grad_q,
        tiles,
        plan,
        index,
        window_size=window_size,
        tuning=tuning,
    )
    inverse = invert_selection(selected, index, num_kv_heads=k.shape[1])
    sums = block_gradients(queries, keys, inverse, index, window_size=window_size, tuning=tuning)
    return Gradients(grad_q, *sum_gradients(sums, sums_cmp, inverse, index, k), grad_gates)
