"""`nsa_attention` and `hybrid_attention`: validate, compose, dispatch to a backend."""

import logging
from collections.abc import Sequence
from functools import cache, partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops import checks
from videonsa.ops.arguments import shown
from videonsa.ops.layout import HybridLayout, VisionGroup, hybrid_layout
from videonsa.ops.reference import dense_reference, nsa_reference
from videonsa.ops.released import hybrid_released, nsa_released, why_not_released
from videonsa.ops.spec import NSAResult, NSASpec
from videonsa.ops.text_rows import dense_rows
from videonsa.ops.triton.index import kernel_index, packed_kernel_index
from videonsa.ops.triton.support import why_not
from videonsa.ops.varlen import (
    Sample,
    batch_sample,
    block_borders,
    block_table,
    check_on_borders,
    check_packing,
    packed_samples,
)

Backend: TypeAlias = Literal["auto", "reference", "triton"]

_logger = logging.getLogger(__name__)


class _Call(NamedTuple):
    """Tensors and options of a call of either op, checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    spec: NSASpec
    return_branches: bool
    layer: int


def nsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    *,
    spec: NSASpec,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    frame_sizes: Tensor | Sequence[int] | None = None,
    q_offset: int | None = None,
    selected_blocks: Tensor | None = None,
    return_branches: bool = False,
    backend: Backend = "auto",
    layer: int = 0,
) -> Tensor | NSAResult:
    """Native Sparse Attention over a vision stream (paper section 2.2; docs/semantics.md).

    All lengths are of the vision stream. The query rows are the last of the keys unless `q_offset`
    says otherwise. With `NSASpec.released()` the stream is the whole sequence, text zeroed.

    Args:
        q: `[B, T, HQ, D]`, after mRoPE.
        k: `[B, S, H, D]`, same dtype and device; HQ is a multiple of H.
        v: `[B, S, H, D]`.
        gates: `[B, T, HQ, 3]` after the sigmoid, branches (compressed, selected, window).
        spec: what to compute.
        cu_seqlens_q: `[N + 1]` int32: packed samples, B = 1. Default: `cu_seqlens_k`.
        cu_seqlens_k: `[N + 1]` int32.
        frame_sizes: tokens of each frame in stream order, samples concatenated; read only with
            `block_size="frame"`. The frames of a sample must cover its keys; the last may exceed
            them while it is arriving.
        q_offset: position of the first row; `q_offset + T <= S`, and later keys are ignored (a
            static cache). Default: S - T.
        selected_blocks: `[B, T, H, n]` int, overrides the selection; negative entries are no block.
        return_branches: give an `NSAResult`.
        backend: "triton" (kernels, an NVIDIA GPU), "reference" (any device), or "auto": kernels
            where they can, and a line in the log where they cannot. With kernels and blocks of one
            size, `cu_seqlens` on the GPU are not read by the host, so their values are not checked.
        layer: number of the layer: with `NSASpec(selection="random")` each draws its own blocks.

    Returns:
        `[B, T, HQ, D]` in the dtype of `q`, or an `NSAResult`.

    Raises:
        ValueError: shapes, dtypes, devices, lengths or options that do not fit.
    """
    checks.check_attention_inputs(q, k, v, gates)
    checks.check_options(spec, q_offset, return_branches, cu_seqlens_q, cu_seqlens_k, layer)
    call = _Call(q, k, v, gates, spec, return_branches, layer)
    use_kernels = _use_kernels(backend, call)
    packed = check_packing(q.shape[0], cu_seqlens_q, cu_seqlens_k, q_offset)
    if spec.head_map == "padded":
        checks.check_released_domain(q, k, packed=packed, q_offset=q_offset)
        return nsa_released(
            q,
            k,
            v,
            gates,
            spec=spec,
            selected_blocks=selected_blocks,
            return_branches=return_branches,
            use_kernels=use_kernels,
        )
    checks.check_selected_blocks(selected_blocks, q, k, num_selected=spec.num_selected_blocks)
    compute = _by_kernels if use_kernels else _by_reference
    return compute(
        call,
        cu_seqlens_q,
        cu_seqlens_k,
        frame_sizes=frame_sizes,
        q_offset=q_offset,
        selected_blocks=selected_blocks,
    )


def hybrid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    vision_mask: Tensor,
    *,
    spec: NSASpec,
    attention_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    q_offset: int | None = None,
    frame_sizes: Tensor | Sequence[int] | None = None,
    return_branches: bool = False,
    backend: Backend = "auto",
    layout: HybridLayout | None = None,
    layer: int = 0,
) -> Tensor | NSAResult:
    """Text rows attend densely to all keys, vision rows by NSA to the vision keys (section 2.3).

    All lengths are of the whole sequence, except `frame_sizes`, which counts vision tokens. No
    sample sees another; a row that is padding gives 0.

    Args:
        q: `[B, T, HQ, D]`, after mRoPE.
        k: `[B, S, H, D]`, same dtype and device, the cache included.
        v: `[B, S, H, D]`.
        gates: `[B, T, HQ, 3]` after the sigmoid; those of text rows are not read and have a
            gradient of 0.
        vision_mask: `[B, S]` bool over the keys.
        spec: what to compute.
        attention_mask: `[B, S]` bool over the keys, False for padding. Default: no padding.
        cu_seqlens_q: `[N + 1]` int32: packed samples, B = 1. Default: `cu_seqlens_k`.
        cu_seqlens_k: `[N + 1]` int32.
        q_offset: key position of the first row; `q_offset + T <= S`, and later keys are ignored (a
            static cache). Default: S - T.
        frame_sizes: tokens of each frame of the vision streams, samples concatenated.
        return_branches: give an `NSAResult` in sequence order; text rows have branches 0, LSE -inf
            and no selected block.
        backend: as in `nsa_attention`; beside the kernels, text rows go through a kernel of
            their own, or through PyTorch's fused attention where there is padding or a gradient.
        layout: `hybrid_layout` of these same arguments, to share it among layers; the masks,
            lengths and frames are then not read again.
        layer: as in `nsa_attention`.

    Returns:
        `[B, T, HQ, D]` in the dtype of `q`, or an `NSAResult`.

    Raises:
        ValueError: shapes, dtypes, devices, lengths or options that do not fit.
    """
    checks.check_attention_inputs(q, k, v, gates)
    checks.check_options(spec, q_offset, return_branches, cu_seqlens_q, cu_seqlens_k, layer)
    checks.check_key_masks(vision_mask, attention_mask, k)
    call = _Call(q, k, v, gates, spec, return_branches, layer)
    use_kernels = _use_kernels(backend, call)
    packed = check_packing(q.shape[0], cu_seqlens_q, cu_seqlens_k, q_offset)
    if spec.head_map == "padded":
        checks.check_released_domain(
            q,
            k,
            packed=packed,
            attention_mask=attention_mask,
            q_offset=q_offset,
            with_layout=layout is not None,
        )
        return _hybrid_as_released(call, vision_mask, use_kernels=use_kernels)
    if layout is None:
        layout = hybrid_layout(
            vision_mask,
            spec=spec,
            num_rows=q.shape[1],
            attention_mask=attention_mask,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            q_offset=q_offset,
            frame_sizes=frame_sizes,
        )
    checks.check_layout(layout, q, k, spec)
    return _hybrid(call, layout, use_kernels=use_kernels)


def _use_kernels(backend: str, call: _Call) -> bool:
    """Whether the Triton kernels compute; says in the log why "auto" leaves a GPU to PyTorch."""
    if not isinstance(backend, str) or backend not in ("auto", "reference", "triton"):
        raise UsageError(f"backend={shown(backend)}: want 'auto', 'reference' or 'triton'")
    if backend == "reference":
        return False
    padded = call.spec.head_map == "padded"
    reason = (why_not_released if padded else why_not)(call.q, call.k, call.spec)
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in call[:4])
    if reason is None and wants_grad:
        reason = _why_no_gradients(call.spec, return_branches=call.return_branches)
    if reason is None and backend == "auto" and not call.q.is_cuda:
        reason = "the kernels would run in Triton's interpreter"
    if backend == "triton" and reason is not None:
        raise UsageError(f"backend='triton': {reason}; use 'auto' or 'reference'")
    if backend == "auto" and not torch.compiler.is_compiling():  # a log line breaks the graph
        _say_choice(reason, call.q.device.type)
    return reason is None


def _why_no_gradients(spec: NSASpec, *, return_branches: bool) -> str | None:
    if spec.head_map == "padded":
        return "gradients are wanted, the released preset has no backward kernels (torch.no_grad())"
    if return_branches:
        return "gradients are wanted with return_branches, the kernels give the output's alone"
    return None


@cache
def _say_choice(reason: str | None, device: str) -> None:
    """One line for each reason, not one a call."""
    if reason is None:
        _logger.info("backend 'auto' takes 'triton'")
        return
    level = logging.WARNING if device == "cuda" else logging.INFO
    _logger.log(level, "backend 'auto' takes 'reference': %s", reason)


def _by_kernels(
    call: _Call,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    *,
    frame_sizes: Tensor | Sequence[int] | None,
    q_offset: int | None,
    selected_blocks: Tensor | None,
) -> Tensor | NSAResult:
    """NSA by the Triton kernels; for blocks of one size nothing is read from the device."""
    from videonsa.ops.triton.attention import nsa_triton  # needs Triton

    q, k, v, gates, spec, return_branches, layer = call
    if cu_seqlens_k is None and cu_seqlens_q is None:
        index, num_keys = kernel_index(q, k, spec=spec, q_offset=q_offset, frame_sizes=frame_sizes)
        k, v = k[:, :num_keys], v[:, :num_keys]
    else:
        index = packed_kernel_index(
            q, k, cu_seqlens_q, cu_seqlens_k, spec=spec, frame_sizes=frame_sizes
        )
    if selected_blocks is not None:
        checks.check_selected_range(selected_blocks, index.max_blocks)
    return nsa_triton(
        q,
        k,
        v,
        gates,
        index,
        spec=spec,
        selected_blocks=selected_blocks,
        return_branches=return_branches,
        layer=layer,
    )


def _by_reference(
    call: _Call,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    *,
    frame_sizes: Tensor | Sequence[int] | None,
    q_offset: int | None,
    selected_blocks: Tensor | None,
) -> Tensor | NSAResult:
    """NSA in plain PyTorch, packed samples one after the other."""
    num_samples, num_rows, num_keys = *call.q.shape[:2], call.k.shape[1]
    if cu_seqlens_k is None and cu_seqlens_q is None:
        samples = [batch_sample(num_rows, num_keys, q_offset)]
    else:
        samples = packed_samples(cu_seqlens_q, cu_seqlens_k, num_rows=num_rows, num_keys=num_keys)
    # Packed, B is 1; unpacked, one `Sample` stands for the whole batch.
    keys = [sample.num_keys for sample in samples * num_samples]
    borders = block_borders(call.spec.block_size, frame_sizes, keys)
    return _join(
        [
            _one_stream(call, sample, borders[i :: len(samples)], selected_blocks)
            for i, sample in enumerate(samples)
        ]
    )


def _one_stream(
    call: _Call,
    sample: Sample,
    borders: Sequence[Sequence[int]],
    selected_blocks: Tensor | None,
) -> tuple[Tensor, ...]:
    """NSA of one packed sample, or of a whole unpacked batch."""
    q, k, v, gates, spec, return_branches, layer = call
    if spec.selection_scope == "block":
        for offsets in borders:
            check_on_borders(offsets, sample.offset, sample.num_rows)
    blocks = block_table(borders, sample.num_keys, device=q.device)
    rows = slice(sample.first_row, sample.first_row + sample.num_rows)
    keys = slice(sample.first_key, sample.first_key + sample.num_keys)
    if selected_blocks is not None:
        selected_blocks = selected_blocks[:, rows]
        checks.check_selected_range(selected_blocks, blocks.num_blocks)
    result = nsa_reference(
        q[:, rows],
        k[:, keys],
        v[:, keys],
        gates[:, rows],
        spec=spec,
        blocks=blocks,
        first_row=sample.offset,
        selected_blocks=selected_blocks,
        return_branches=return_branches,
        layer=layer,
    )
    return _fields(result)


def _hybrid_as_released(
    call: _Call, vision_mask: Tensor, *, use_kernels: bool
) -> Tensor | NSAResult:
    q, k, v, gates, spec, return_branches, _ = call
    return hybrid_released(
        q,
        k,
        v,
        gates,
        vision_mask,
        spec=spec,
        return_branches=return_branches,
        use_kernels=use_kernels,
    )


def _hybrid(call: _Call, layout: HybridLayout, *, use_kernels: bool) -> Tensor | NSAResult:
    """All vision groups, then all text groups; put back in sequence order."""
    q, k, v, gates, spec, return_branches, _ = call
    parts = []
    rows = list(layout.by_group(q))
    attend = _vision_rows_by_kernels if use_kernels else _vision_rows
    for vision, own, own_gates in zip(layout.vision, rows, layout.by_group(gates), strict=False):
        parts.append(_fields(attend(call._replace(q=own, gates=own_gates), vision)))
    for text, own in zip(layout.text, rows[len(layout.vision) :], strict=True):
        densely = partial(dense_rows, runs=text.runs) if use_kernels else dense_reference
        output = densely(
            own,
            text.keys.take(k),
            text.keys.take(v),
            positions=text.positions,
            key_mask=text.key_mask,
        )
        parts.append(_without_branches(output, k.shape[2], spec) if return_branches else (output,))
    fields = zip(*parts, strict=True)
    ordered = [layout.in_order(field).unflatten(0, q.shape[:2]) for field in fields]
    if not layout.vision and torch.is_grad_enabled() and gates.requires_grad:
        # No row reads the gates. Their gradient is 0 then, not absent: where processes shard
        # weights, what one of them lacks stops all.
        ordered[0] = ordered[0] + gates[:, :0].sum()
    return NSAResult(*ordered) if return_branches else ordered[0]


def _vision_rows(call: _Call, group: VisionGroup) -> Tensor | NSAResult:
    """Queries and gates `[b, Nv, ...]` of the group; k and v of all keys."""
    q, k, v, gates, spec, return_branches, layer = call
    return nsa_reference(
        q,
        group.keys.take(k),
        group.keys.take(v),
        gates,
        spec=spec,
        blocks=group.blocks,
        first_row=group.first_row,
        return_branches=return_branches,
        layer=layer,
    )


def _vision_rows_by_kernels(call: _Call, group: VisionGroup) -> Tensor | NSAResult:
    from videonsa.ops.triton.attention import nsa_triton  # needs Triton

    q, k, v, gates, spec, return_branches, layer = call
    return nsa_triton(
        q,
        group.keys.take(k).contiguous(),  # a cache has other strides, which TMA does not read
        group.keys.take(v).contiguous(),
        gates,
        group.stream,
        spec=spec,
        return_branches=return_branches,
        layer=layer,
    )


def _without_branches(output: Tensor, num_kv_heads: int, spec: NSASpec) -> tuple[Tensor, ...]:
    """The fields of an `NSAResult` for text rows."""
    rows, heads = output.shape[:2], output.shape[2]
    nothing = torch.zeros_like(output)
    lse = torch.full((*rows, heads), -torch.inf, device=output.device)
    no_block = torch.full(
        (*rows, num_kv_heads, spec.num_selected_blocks),
        -1,
        dtype=torch.int32,
        device=output.device,
    )
    return (output, nothing, nothing, nothing, lse, lse, lse, no_block)


def _fields(result: Tensor | NSAResult) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _join(parts: Sequence[tuple[Tensor, ...]]) -> Tensor | NSAResult:
    """Packed samples behind one another."""
    fields = parts[0] if len(parts) == 1 else [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    return fields[0] if len(fields) == 1 else NSAResult(*fields)
