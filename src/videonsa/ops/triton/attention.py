"""The kernels behind `nsa_attention`: custom ops of flat tensors, and the way to and from them."""

from typing import Any

import torch
from torch import Tensor

from videonsa.ops.masks import ascending
from videonsa.ops.random_blocks import random_blocks
from videonsa.ops.spec import BRANCHES, NSAResult, NSASpec
from videonsa.ops.triton.backward import nsa_backward as run_backward
from videonsa.ops.triton.common import on_device
from videonsa.ops.triton.forward import Branches, Options, nsa_forward
from videonsa.ops.triton.index import StreamIndex
from videonsa.ops.triton.support import compute_device
from videonsa.ops.triton.tuning import tuning_for


def nsa_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    index: StreamIndex,
    *,
    spec: NSASpec,
    selected_blocks: Tensor | None = None,
    return_branches: bool = False,
    layer: int = 0,
) -> Tensor | NSAResult:
    """NSA of the `paper` preset by kernels (paper section 2.2).

    Gradients of q, k, v and gates flow from the output alone, not from the branches.

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        gates: `[B, T, HQ, 3]` after the sigmoid.
        index: of these rows and keys, flat over the batch.
        spec: a spec of the `paper` preset.
        selected_blocks: `[B, T, H, n]` int, overrides the selection; negative entries are none.
        return_branches: give an `NSAResult`.
        layer: its number, read where the selection is random.

    Returns:
        `[B, T, HQ, D]` in the dtype of `q`, or an `NSAResult`.
    """
    dtype = q.dtype
    device = compute_device(q.device).type
    if torch.is_autocast_enabled(device):
        q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    begin, current = (x.view(*q.shape[:2], 1, 1) for x in (index.row_begin, index.row_block))
    given = selected = None
    if selected_blocks is not None:
        given = ascending(selected_blocks)
        # A block after the row's own holds no key for it; what is cut stood last in its row.
        seen = (given >= 0) & (given <= current - begin)
        selected = torch.where(seen, given + begin, -1).flatten(0, 1).contiguous()
    elif spec.selection == "random" and (return_branches or "selected" in spec.branches):
        selected = _drawn(index, k.shape[2], spec, layer)
    flat = (_flat(q), _flat(k), _flat(v), gates.flatten(0, 1))
    options = (list(index[:7]), list(map(int, index[7:])), selected, *_options(spec))
    if q.is_meta:  # the op would only tell the shapes of its results
        result = _run(flat, *options, keep="")
        return result.output.view(q.shape).to(dtype)
    arguments = (*flat, *options)
    if not return_branches:
        wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in flat)
        output: Tensor = (
            # The backward pass needs what the sum was made of.
            torch.ops.videonsa.nsa_branches(*arguments, arguments[-1])[0]
            if wants_grad
            else torch.ops.videonsa.nsa(*arguments)
        )
        return output.view(q.shape).to(dtype)
    *parts, chosen = torch.ops.videonsa.nsa_branches(*arguments, " ".join(BRANCHES))
    fields = [x.view(*q.shape[:2], *x.shape[1:]) for x in parts]
    chosen = chosen.view(*q.shape[:2], *chosen.shape[1:])
    chosen = torch.where(chosen >= 0, chosen - begin, -1) if given is None else given
    return NSAResult._make([*(x.to(dtype) for x in fields[:4]), *fields[4:], chosen])


def _drawn(index: StreamIndex, num_kv_heads: int, spec: NSASpec, layer: int) -> Tensor:
    """A random selection of flat blocks, `[R, H, n]`."""
    current, position = (
        index.row_block - index.row_begin,
        index.row_key - index.block_start[index.row_begin],
    )
    drawn = random_blocks(current, position, num_kv_heads=num_kv_heads, spec=spec, layer=layer)
    return torch.where(drawn >= 0, drawn + index.row_begin[:, None, None], -1)


def _flat(x: Tensor) -> Tensor:
    """`[B, L, H, D]` -> `[B * L, H, D]`, last dimension contiguous; copied only if needed."""
    return (x if x.stride(3) == 1 else x.contiguous()).flatten(0, 1)


def _options(spec: NSASpec) -> tuple[list[int], bool, str]:
    counts = [
        spec.num_selected_blocks,
        spec.window_size,
        spec.num_init_blocks,
        spec.num_local_blocks,
    ]
    return counts, spec.selection_scope == "block", " ".join(spec.branches)


def _stream(index: list[Tensor], bounds: list[int]) -> StreamIndex:
    max_blocks, max_size, uniform, rows_of_sample = bounds
    return StreamIndex._make([*index, max_blocks, max_size, bool(uniform), rows_of_sample])


def _spec_options(counts: list[int], per_block: bool, branches: str) -> Options:
    num_selected, window_size, num_init, num_local = counts
    return Options(
        num_selected=num_selected,
        window_size=window_size,
        num_init=num_init,
        num_local=num_local,
        per_block=per_block,
        branches=tuple(branches.split()),
    )


def _run(
    flat: tuple[Tensor, Tensor, Tensor, Tensor],
    index: list[Tensor],
    bounds: list[int],
    selected: Tensor | None,
    counts: list[int],
    per_block: bool,
    branches: str,
    *,
    keep: str,
) -> Branches:
    stream = _stream(index, bounds)
    with on_device(flat[0]):
        return nsa_forward(
            *flat,
            stream,
            selected,
            options=_spec_options(counts, per_block, branches),
            tuning=tuning_for(stream.max_size, device=flat[0].device),
            keep=tuple(keep.split()),
        )


@torch.library.custom_op("videonsa::nsa", mutates_args=())
def nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    index: list[Tensor],
    bounds: list[int],
    selected: Tensor | None,
    counts: list[int],
    per_block: bool,
    branches: str,
) -> Tensor:
    """The gated sum `[R, HQ, D]` of flat q `[R, HQ, D]`, k and v `[S, H, D]`, gates `[R, HQ, 3]`.

    index and bounds are the fields of a `StreamIndex`, counts and per_block those of `Options`;
    branches are names with spaces between.
    """
    flat = (q, k, v, gates)
    return _run(flat, index, bounds, selected, counts, per_block, branches, keep="").output


@torch.library.custom_op("videonsa::nsa_branches", mutates_args=())
def nsa_branches(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    index: list[Tensor],
    bounds: list[int],
    selected: Tensor | None,
    counts: list[int],
    per_block: bool,
    branches: str,
    keep: str,
) -> list[Tensor]:
    """As `videonsa::nsa`, and what the sum was made of: the fields of `Branches`.

    Those of branches that are not named in `keep` are empty.
    """
    flat = (q, k, v, gates)
    result = _run(flat, index, bounds, selected, counts, per_block, branches, keep=keep)
    if result.selected is not None and selected is not None:
        result = result._replace(selected=selected.clone())  # an op may not return its input
    return [q.new_empty(0) if x is None else x for x in result]


@nsa.register_fake
def _(q: Tensor, *arguments: object) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@nsa_branches.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    index: list[Tensor],
    bounds: list[int],
    selected: Tensor | None,
    counts: list[int],
    per_block: bool,
    branches: str,
    keep: str,
) -> list[Tensor]:
    kept = [name in keep.split() for name in BRANCHES]
    outputs = [q.new_empty(q.shape if x else 0) for x in (True, *kept)]
    lses = [q.new_empty(q.shape[:2], dtype=torch.float32) if x else q.new_empty(0) for x in kept]
    chosen = q.new_empty(0)
    if "selected" in keep.split():
        chosen = q.new_empty((q.shape[0], k.shape[1], counts[0]), dtype=torch.int32)
    return [*outputs, *lses, chosen]


@torch.library.custom_op("videonsa::nsa_backward", mutates_args=())
def nsa_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    saved: list[Tensor],
    index: list[Tensor],
    bounds: list[int],
    counts: list[int],
    per_block: bool,
    branches: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and gates from that of the output and what `nsa_branches` gave."""
    stream = _stream(index, bounds)
    with on_device(q):
        return run_backward(
            grad,
            q,
            k,
            v,
            gates,
            Branches._make([q, *saved]),
            stream,
            options=_spec_options(counts, per_block, branches),
            tuning=tuning_for(stream.max_size, device=q.device),
        )


@nsa_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, *arguments: object
) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, gates))


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    q, k, v, gates, index, bounds, _, *ctx.options, _ = inputs
    ctx.bounds = bounds
    # Only the output has a gradient: zeros like the other results would be 2.9 GB at 128K.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, gates, *output[1:], *index)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # once: under activation checkpointing, reading them recomputes
    flat, saved, index = tensors[:4], tensors[4:11], tensors[11:]
    found = torch.ops.videonsa.nsa_backward(
        grads[0], *flat, list(saved), list(index), ctx.bounds, *ctx.options
    )
    return (*found, [None] * len(index), *[None] * (3 + len(ctx.options)))


nsa_branches.register_autograd(_backward, setup_context=_save)
