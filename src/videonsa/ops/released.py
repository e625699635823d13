"""What the published VideoNSA code computes, float32, in plain torch operations.

The `released` preset is kept to read the published weights as they were used. It differs from the
paper in its head map, its compressed mask, its importance and its tie order; docs/semantics.md
lists every difference. `nsa_attention` and `hybrid_attention` come here with checked shapes: one
unpadded sample, 28 query and 4 KV heads. Letters: T rows (text and vision), D head dim, C blocks,
R rows of one query chunk, J = 4 KV groups of 16 padded heads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from videonsa.errors import UsageError
from videonsa.ops.bitonic import bitonic_top
from videonsa.ops.masks import ascending, causal, membership, windowed
from videonsa.ops.padded import (
    BLOCK_SIZE,
    NUM_KV_HEADS,
    NUM_QUERY_HEADS,
    PADDED_GROUP,
    PADDED_HEADS,
    heads_first,
    mean_of_copies,
    num_slots,
    pad_heads,
    pool_all_blocks,
    rounded,
    within,
)
from videonsa.ops.reference import compute_dtype
from videonsa.ops.spec import BRANCHES, NSAResult, NSASpec
from videonsa.ops.triton.support import DTYPES, why_not

SCORES_PER_CHUNK = 2**24
"""Scores that one branch of a query chunk holds at a time (64 MiB in float32)."""
LEAST_DENSE_ROWS = 16
"""Text rows from which on a kernel attends for them: fewer leave most of a GPU idle in one pass
over the keys of a row, where PyTorch spreads the keys."""


def why_not_released(q: Tensor, k: Tensor, spec: NSASpec) -> str | None:
    """The first reason why the kernels cannot take these inputs, or None.

    q `[..., 28, D]` and k `[..., 4, D]` of one dtype and device.
    """
    if q.is_cuda and q.dtype not in DTYPES:  # autocast does not lower the precision of this preset
        return f"the dtype is {q.dtype}, the kernels take bfloat16 and float16"
    return why_not(q, k, NSASpec(num_selected_blocks=spec.num_selected_blocks))


class _Keys(NamedTuple):
    """Keys and values of one sample in the compute dtype, KV heads first."""

    k: Tensor  # [J, T, D]
    v: Tensor  # [J, T, D]
    k_cmp: Tensor  # [J, C, D]
    v_cmp: Tensor  # [J, C, D]


def nsa_released(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    *,
    spec: NSASpec,
    selected_blocks: Tensor | None = None,
    return_branches: bool = False,
    rows: Tensor | None = None,
    query_chunk: int | None = None,
    use_kernels: bool = False,
) -> Tensor | NSAResult:
    """The gated NSA sum of the published code over a whole sequence (commit 377eeb9).

    Attention is computed in float64 for float64 inputs and in float32 for all others. Rounding to
    the input dtype happens where the published code rounds: pooled keys and values, attention
    weights before they meet the values, the scaled query of the selection and of the selected
    branch, each branch, each step of the gated sum. No gradient flows through the selection.

    Memory beside the results is bounded by the query chunk; with gradients each chunk is computed
    again in the backward pass.

    Args:
        q: `[1, T, 28, D]`, with the rows of text tokens zeroed.
        k: `[1, T, 4, D]`, with the rows of text tokens zeroed.
        v: `[1, T, 4, D]`, with the rows of text tokens zeroed.
        gates: `[1, T, 28, 3]` after the sigmoid, branches (compressed, selected, window).
        spec: `NSASpec.released(...)`.
        selected_blocks: `[1, R, 4, n]` int, overrides the selection; entries that are negative or
            name no block are ignored, duplicates count once.
        return_branches: give an `NSAResult`; its branches keep the 64 padded heads (the 28 heads,
            the same 28 again, 8 zero heads) and its `selected_blocks` the 4 padded KV groups.
        rows: `[R]` int64 ascending: compute only these query rows. Default: all T.
        query_chunk: rows computed at a time. Default: as many as `SCORES_PER_CHUNK` allows.
        use_kernels: compute by the Triton kernels, where `why_not_released` has no objection and
            no gradient is wanted; single `rows` are left to PyTorch.

    Returns:
        `[1, R, 28, D]` in the dtype of `q`, or an `NSAResult`.

    Raises:
        ValueError: fewer rows than keys; a spec, rows or selected blocks that do not fit.
    """
    _check_spec(spec)
    if q.shape[1] != k.shape[1]:
        raise UsageError(
            f"q has {q.shape[1]} rows, k has {k.shape[1]}: the released preset needs the whole "
            "sequence; pass a step without vision tokens to hybrid_released"
        )
    rows = _checked_rows(rows, q)
    result = _nsa(
        q,
        k,
        v,
        gates,
        rows,
        spec=spec,
        selected_blocks=selected_blocks,
        return_branches=return_branches,
        query_chunk=query_chunk,
        use_kernels=use_kernels,
    )
    return _as_batch(result)


def hybrid_released(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    vision_mask: Tensor,
    *,
    spec: NSASpec,
    selected_blocks: Tensor | None = None,
    return_branches: bool = False,
    rows: Tensor | None = None,
    query_chunk: int | None = None,
    use_kernels: bool = False,
) -> Tensor | NSAResult:
    """The whole attention of a layer of the published code: what goes into `o_proj`.

    Every row gets NSA with the text rows of q, k and v zeroed, plus dense attention in which the
    queries of vision rows are zeroed: a text row adds 0.5 times its three branches to its dense
    attention, a vision row adds the mean of all values up to itself to its NSA.

    A step without a vision token is plain causal attention over all keys, with T <= S: this is how
    decode steps are computed. Its branches, if asked for, are zero with LSE -inf.

    Args:
        q: `[1, T, 28, D]`, the last T positions of the sequence.
        k: `[1, S, 4, D]`.
        v: `[1, S, 4, D]`.
        gates: `[1, T, 28, 3]` after the sigmoid; those of text rows are replaced by 0.5.
        vision_mask: `[1, S]` bool over the keys.
        spec: `NSASpec.released(...)`.
        selected_blocks: as in `nsa_released`.
        return_branches: as in `nsa_released`; `output` is still that of the layer.
        rows: as in `nsa_released`.
        query_chunk: as in `nsa_released`.
        use_kernels: as in `nsa_released`; for text rows too, unless they are few.

    Returns:
        `[1, R, 28, D]` in the dtype of `q`, or an `NSAResult`.

    Raises:
        ValueError: a step with vision tokens that is not the whole sequence; a spec, rows or
            selected blocks that do not fit.
    """
    _check_spec(spec)
    num_rows, num_keys = q.shape[1], k.shape[1]
    rows = _checked_rows(rows, q)
    vision = vision_mask[:, num_keys - num_rows :]  # [1, T]
    if not vision.any():
        dense = _dense(q, k, v, rows, query_chunk=query_chunk, use_kernels=use_kernels)
        return _as_batch(_without_nsa(dense, spec) if return_branches else dense)
    if num_rows != num_keys:
        raise UsageError(
            f"a step of {num_rows} rows on {num_keys} keys holds vision tokens: the released "
            "preset needs the whole sequence at once; use the paper preset for later turns"
        )
    on_vision = vision[..., None, None]
    nsa = _nsa(
        q * on_vision,
        k * on_vision,
        v * on_vision,
        torch.where(on_vision, gates, 0.5),
        rows,
        spec=spec,
        selected_blocks=selected_blocks,
        return_branches=return_branches,
        query_chunk=query_chunk,
        use_kernels=use_kernels,
    )
    dense = _dense_text_rows(
        q, k, v, vision[0], rows, query_chunk=query_chunk, use_kernels=use_kernels
    )
    if isinstance(nsa, NSAResult):
        return _as_batch(nsa._replace(output=nsa.output + dense))
    return _as_batch(nsa + dense)


@torch.no_grad()
def select_released(
    q: Tensor,
    k: Tensor,
    *,
    spec: NSASpec,
    rows: Tensor | None = None,
    query_chunk: int | None = None,
) -> Tensor:
    """The blocks that the published code selects, in the order of its sorting network.

    Args are those of `nsa_released`. Returns int64 `[1, R, 4, n]`, n rounded up to a power of two;
    -1 in a slot that stayed empty.
    """
    k_cmp, rows = pool_all_blocks(k), _checked_rows(rows, q)
    num_blocks = k_cmp.shape[1]

    def compressed_lse(rows: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        visible = _sees_compressed(rows, num_blocks, spec=spec)[:, None]
        padded = _scaled(pad_heads(q))
        return (_attend(padded, k_cmp, k_cmp, visible, dtype=q.dtype)[1],)

    def top(rows: Tensor, q: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
        current = rows // BLOCK_SIZE
        padded = rounded(_scaled(pad_heads(q)), q.dtype)
        scores = torch.einsum("rjgd,jcd->rjgc", padded, k_cmp)
        each = (scores - torch.unflatten(lse, 1, padded.shape[1:3])[..., None]).exp()
        # One head after the other: text rows tie exactly, so every column must sum in one order.
        importance = sum(each.unbind(dim=2), start=torch.zeros_like(each[:, :, 0]))
        is_current = torch.arange(num_blocks, device=q.device) == current[:, None]
        importance = importance.masked_fill(is_current[:, None], PADDED_GROUP)
        return (bitonic_top(importance, current)[..., :num_selected],)

    num_selected = num_slots(spec)
    size = query_chunk or _chunk_size(max(num_blocks, BLOCK_SIZE))
    every_row = torch.arange(q.shape[1], device=q.device)
    (lse,) = _walk(compressed_lse, every_row, q[0], query_chunk=size)
    lse = _finite(_misread(lse))
    (selected,) = _walk(top, rows, _take(q[0], rows), _take(lse, rows), query_chunk=size)
    return selected[None]


def _nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    rows: Tensor,
    *,
    spec: NSASpec,
    selected_blocks: Tensor | None,
    return_branches: bool,
    query_chunk: int | None,
    use_kernels: bool,
) -> Tensor | NSAResult:
    """NSA of the given rows, without batch dimension, composed in the dtype of `q`."""
    selected = None
    if selected_blocks is not None:
        selected = _checked_selection(selected_blocks, len(rows)).to(q.device)
    if use_kernels and len(rows) == q.shape[1]:
        from videonsa.ops.triton.common import on_device  # needs Triton
        from videonsa.ops.triton.released import released_forward

        inputs = q[0], k[0], v[0], gates[0], selected
        with on_device(q):
            return released_forward(*inputs, spec=spec, return_branches=return_branches)
    keys = _Keys(heads_first(k), heads_first(v), pool_all_blocks(k), pool_all_blocks(v))
    if selected is None:
        selected = select_released(q, k, spec=spec, rows=rows, query_chunk=query_chunk)[0]
    counted = torch.tensor([branch in spec.branches for branch in BRANCHES], device=q.device)

    def attend(rows: Tensor, q: Tensor, gates: Tensor, selected: Tensor) -> tuple[Tensor, ...]:
        branches = _branches(q, keys, rows, selected, spec=spec)
        o_cmp, o_slc, o_win = (o for o, _ in branches)
        gates = pad_heads(gates.to(q.dtype) * counted).flatten(1, 2)  # [R, 64, 3]
        g_cmp, g_slc, g_win = torch.split(gates, 1, dim=-1)
        output = mean_of_copies(g_cmp * o_cmp + g_slc * o_slc + g_win * o_win)
        if not return_branches:
            return (output,)
        return output, o_cmp, o_slc, o_win, *(lse.float() for _, lse in branches)

    size = query_chunk or _chunk_size(k.shape[1])
    result = _walk(
        attend, rows, _take(q[0], rows), _take(gates[0], rows), selected, query_chunk=size
    )
    if not return_branches:
        return result[0]
    return NSAResult._make((*result, ascending(within(selected, keys.k_cmp.shape[1]))))


def _branches(
    q: Tensor, keys: _Keys, rows: Tensor, selected: Tensor, *, spec: NSASpec
) -> list[tuple[Tensor, Tensor]]:
    """Output `[R, 64, D]` and LSE `[R, 64]` of the three branches for queries `[R, 28, D]`."""
    num_blocks = keys.k_cmp.shape[1]
    compressed = _sees_compressed(rows, num_blocks, spec=spec)[:, None]  # [R, 1, C]

    start, stop = int(rows[0]), int(rows[-1]) + 1  # rows ascend: later keys are out of reach
    position = torch.arange(stop, device=q.device)
    chosen = membership(within(selected, num_blocks), num_blocks)  # [R, J, C]
    in_selected = chosen[..., position // BLOCK_SIZE] & causal(rows, position)[:, None]

    start = max(0, start - spec.window_size + 1)
    in_window = windowed(rows, position[start:], spec.window_size)[:, None]

    padded, dtype = _scaled(pad_heads(q)), q.dtype
    k, v = keys.k[:, :stop], keys.v[:, :stop]
    return [
        _attend(padded, keys.k_cmp, keys.v_cmp, compressed, dtype=dtype),
        _attend(rounded(padded, dtype), k, v, in_selected, dtype=dtype),
        _attend(padded, k[:, start:], v[:, start:], in_window, dtype=dtype),
    ]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Masked attention: scaled q `[R, J, G, D]`, k and v `[J, K, D]`, visible `[R, J or 1, K]`.

    Returns the output `[R, J * G, D]` in `dtype` and the LSE `[R, J * G]` in the dtype of q. A row
    that sees nothing gives 0 and -inf, and its gradients are 0.
    """
    scores = torch.einsum("rjgd,jkd->rjgk", q, k)
    scores = scores.masked_fill_(~visible[:, :, None], -torch.inf)
    highest = scores.detach().amax(dim=-1)
    weights = (scores - _finite(highest)[..., None]).exp()
    total = weights.sum(dim=-1)  # at least 1, the weight of the highest; 0 in a row without keys
    output = torch.einsum("rjgk,jkd->rjgd", rounded(weights, dtype), v)
    output = output / total.clamp(min=1)[..., None]
    return output.flatten(1, 2).to(dtype), (highest + total.detach().log()).flatten(1)


def _finite(lse: Tensor) -> Tensor:
    """The LSE of a row without keys counts as 0, as in the published kernels."""
    return lse.masked_fill(lse == -torch.inf, 0)


def _sees_compressed(rows: Tensor, num_blocks: int, *, spec: NSASpec) -> Tensor:
    """Which rows see which pooled blocks, bool `[R, C]`; a partial last block is one of them."""
    blocks = torch.arange(num_blocks, device=rows.device)
    current = rows[:, None] // BLOCK_SIZE
    if spec.compressed_mask == "past_complete":
        return blocks < (rows[:, None] + 1) // BLOCK_SIZE
    if spec.compressed_mask == "past_and_current":
        return blocks <= current
    return blocks >= current


def _misread(lse: Tensor) -> Tensor:
    """The published kernels store the LSE as `[64, T]` and read the same memory as `[T, 64]`."""
    return lse.T.reshape(lse.shape)


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    *,
    query_chunk: int | None,
    use_kernels: bool,
) -> Tensor:
    """Causal attention of some of the last T positions over S keys: `[R, 28, D]`."""
    positions = rows + k.shape[1] - q.shape[1]
    if use_kernels and len(rows) >= LEAST_DENSE_ROWS:
        from videonsa.ops.triton.common import on_device  # needs Triton
        from videonsa.ops.triton.released import dense_rows

        with on_device(q):
            return dense_rows(_take(q[0], rows), k[0], v[0], positions)
    keys, values = heads_first(k), heads_first(v)

    def attend(positions: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        stop = int(positions[-1]) + 1
        visible = causal(positions, torch.arange(stop, device=q.device))[:, None]
        grouped = _scaled(torch.unflatten(q, 1, (NUM_KV_HEADS, -1)))
        return (_attend(grouped, keys[:, :stop], values[:, :stop], visible, dtype=q.dtype)[0],)

    size = query_chunk or _chunk_size(k.shape[1])
    (output,) = _walk(attend, positions, _take(q[0], rows), query_chunk=size)
    return output


def _dense_text_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vision: Tensor,
    rows: Tensor,
    *,
    query_chunk: int | None,
    use_kernels: bool,
) -> Tensor:
    """Dense causal attention with the queries of vision rows zeroed: `[R, 28, D]`.

    A zero query weighs all its keys alike: a vision row gets the mean of the values so far.
    """
    num_seen = torch.arange(1, v.shape[1] + 1, device=v.device)
    # Tokens last: a GPU scans along the last dimension in parallel, along any other in sequence.
    values = heads_first(v).transpose(1, 2).contiguous()  # [J, D, T]
    mean = (values.cumsum(dim=2) / num_seen).permute(2, 0, 1)  # [T, J, D]
    mean = _take(mean, rows).to(q.dtype)
    mean = mean.repeat_interleave(NUM_QUERY_HEADS // NUM_KV_HEADS, dim=1)  # [R, 28, D]
    text = (~_take(vision, rows)).nonzero()[:, 0]
    if not len(text):
        return mean
    dense = _dense(q, k, v, rows[text], query_chunk=query_chunk, use_kernels=use_kernels)
    return mean.index_copy(0, text, dense)


def _without_nsa(output: Tensor, spec: NSASpec) -> NSAResult:
    """The result of a step without vision tokens, in which no branch takes part."""
    num_rows, _, dim = output.shape
    num_selected = num_slots(spec)
    empty = output.new_zeros(num_rows, PADDED_HEADS, dim)
    lse = output.new_full((num_rows, PADDED_HEADS), -torch.inf, dtype=torch.float32)
    none = output.new_full((num_rows, NUM_KV_HEADS, num_selected), -1, dtype=torch.int32)
    return NSAResult(output, empty, empty, empty, lse, lse, lse, none)


def _walk(
    function: Callable[..., tuple[Tensor, ...]],
    rows: Tensor,
    *per_row: Tensor,
    query_chunk: int,
) -> tuple[Tensor, ...]:
    """`function(rows, *per_row)` on one query chunk after the other, results joined.

    With gradients every chunk is computed again in the backward pass: its scores are never kept.
    """
    chunks = list(zip(*(torch.split(x, query_chunk) for x in (rows, *per_row)), strict=True))
    with torch.autocast(rows.device.type, enabled=False):
        if len(chunks) > 1 and torch.is_grad_enabled():
            results = [
                checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
                for chunk in chunks
            ]
        else:
            results = [function(*chunk) for chunk in chunks]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _chunk_size(num_keys: int) -> int:
    return max(1, SCORES_PER_CHUNK // (PADDED_HEADS * num_keys))


def _scaled(q: Tensor) -> Tensor:
    """Queries times 1 / sqrt(D), in the compute dtype."""
    scale: float = q.shape[-1] ** -0.5
    return q.to(compute_dtype(q)) * scale


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows of x; x itself, uncopied, if they are all of them."""
    return x if len(rows) == len(x) else x[rows]


def _as_batch(result: Tensor | NSAResult) -> Tensor | NSAResult:
    """Put the batch dimension back."""
    return NSAResult(*(x[None] for x in result)) if isinstance(result, NSAResult) else result[None]


def _check_spec(spec: NSASpec) -> None:
    if spec.head_map != "padded":
        raise UsageError(f"head_map={spec.head_map!r}: want a spec of NSASpec.released()")
    extra = (spec.num_init_blocks, spec.num_local_blocks, spec.selection_scope)
    if extra != (0, 0, "token"):
        raise UsageError(
            f"num_init_blocks, num_local_blocks, selection_scope = {extra}: the released preset "
            "forces no block and selects for every token; leave them out or use the paper preset"
        )


def _checked_rows(rows: Tensor | None, q: Tensor) -> Tensor:
    if rows is None:
        return torch.arange(q.shape[1], device=q.device)
    in_order = rows.dim() == 1 and len(rows) > 0 and bool((rows.diff() > 0).all())
    if rows.dtype != torch.int64 or not in_order or rows[0] < 0 or rows[-1] >= q.shape[1]:
        raise UsageError(
            f"rows is {rows.dtype} {list(rows.shape)}: want int64 [R], at least one, ascending "
            f"without repeats, within 0 and {q.shape[1] - 1}"
        )
    return rows.to(q.device)


def _checked_selection(selected_blocks: Tensor, num_rows: int) -> Tensor:
    wanted = (1, num_rows, NUM_KV_HEADS)
    integer = not selected_blocks.is_floating_point() and selected_blocks.dtype != torch.bool
    if selected_blocks.dim() != 4 or selected_blocks.shape[:3] != wanted or not integer:
        raise UsageError(
            f"selected_blocks is {selected_blocks.dtype} {list(selected_blocks.shape)}: want "
            f"integers [1, {num_rows}, 4, n]"
        )
    return selected_blocks[0].long()
