"""What the public ops refuse: each a ValueError with what came and what was wanted."""

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.arguments import check_int, check_type
from videonsa.ops.layout import HybridLayout
from videonsa.ops.padded import NUM_KV_HEADS, NUM_QUERY_HEADS
from videonsa.ops.spec import NSASpec

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_options(
    spec: NSASpec,
    q_offset: int | None,
    return_branches: bool,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    layer: int,
) -> None:
    """The types of the arguments that the two ops share."""
    check_type(spec, NSASpec, "spec")
    check_type(return_branches, bool, "return_branches")
    check_int(layer, "layer")
    if q_offset is not None:
        check_int(q_offset, "q_offset")
    for name, lengths in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if lengths is not None:
            check_type(lengths, Tensor, name)


def check_attention_inputs(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> None:
    """Shapes `[B, T, HQ, D]`, `[B, S, H, D]` twice, `[B, T, HQ, 3]`; floating, on one device."""
    for name, x in (("q", q), ("k", k), ("v", v), ("gates", gates)):
        check_type(x, Tensor, name)
    if q.dim() != 4 or k.dim() != 4:
        raise UsageError(
            f"q is {list(q.shape)}, k is {list(k.shape)}: want [B, T, HQ, D] and [B, S, H, D]"
        )
    if v.shape != k.shape:
        raise UsageError(f"v is {list(v.shape)}, k is {list(k.shape)}: want the same shape")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise UsageError(
            f"q is {list(q.shape)}, k is {list(k.shape)}: want the same batch and head dim"
        )
    if 0 in (q.shape[0], q.shape[2], q.shape[3], k.shape[2]) or q.shape[2] % k.shape[2]:
        raise UsageError(
            f"q is {list(q.shape)}, k is {list(k.shape)}: want query heads that are a multiple of "
            "the KV heads, and no empty batch, heads or head dim"
        )
    if gates.shape != (*q.shape[:3], 3):
        raise UsageError(
            f"gates is {list(gates.shape)}: want {[*q.shape[:3], 3]}, three branches a query head"
        )
    _check_dtypes(q, k, v, gates)


def _check_dtypes(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> None:
    if not (q.dtype == k.dtype == v.dtype and q.dtype in DTYPES and gates.dtype in DTYPES):
        raise UsageError(
            f"q, k, v, gates are {q.dtype}, {k.dtype}, {v.dtype}, {gates.dtype}: want float16, "
            "bfloat16, float32 or float64, the same for q, k and v"
        )
    if not q.device == k.device == v.device == gates.device:
        raise UsageError(
            f"q, k, v, gates are on {q.device}, {k.device}, {v.device}, {gates.device}: want one "
            "device"
        )


def check_selected_blocks(
    selected_blocks: Tensor | None, q: Tensor, k: Tensor, *, num_selected: int
) -> None:
    """An override of the selection: int `[B, T, H, n]` on the device of q."""
    if selected_blocks is None:
        return
    check_type(selected_blocks, Tensor, "selected_blocks")
    wanted = (*q.shape[:2], k.shape[2], num_selected)
    if selected_blocks.shape != wanted or selected_blocks.dtype not in (torch.int32, torch.int64):
        raise UsageError(
            f"selected_blocks is {selected_blocks.dtype} {list(selected_blocks.shape)}: want int32 "
            f"{list(wanted)}, the spec's num_selected_blocks for each row and KV head"
        )
    if selected_blocks.device != q.device:
        raise UsageError(f"selected_blocks is on {selected_blocks.device}: want {q.device}")


def check_selected_range(selected_blocks: Tensor, num_blocks: int) -> None:
    """Every entry names a block of the stream, or is negative."""
    highest = int(selected_blocks.max()) if selected_blocks.numel() else -1
    if highest >= num_blocks:
        raise UsageError(
            f"selected_blocks names block {highest} of {num_blocks}: want indices below that, or "
            "-1 for none"
        )


def check_key_masks(vision_mask: Tensor, attention_mask: Tensor | None, k: Tensor) -> None:
    """Masks over the keys: bool `[B, S]` on the device of k."""
    _check_key_mask(vision_mask, "vision_mask", k)
    if attention_mask is not None:
        _check_key_mask(attention_mask, "attention_mask", k)


def _check_key_mask(mask: Tensor, name: str, k: Tensor) -> None:
    check_type(mask, Tensor, name)
    if mask.shape != k.shape[:2] or mask.dtype != torch.bool:
        raise UsageError(
            f"{name} is {mask.dtype} {list(mask.shape)}: want bool {list(k.shape[:2])}, one entry "
            "for each key"
        )
    if mask.device != k.device:
        raise UsageError(f"{name} is on {mask.device}: want {k.device}, where k is")


def check_layout(layout: HybridLayout, q: Tensor, k: Tensor, spec: NSASpec) -> None:
    """The layout was built for these lengths and this spec."""
    check_type(layout, HybridLayout, "layout")
    built = (layout.num_samples, layout.num_rows, layout.num_keys)
    wanted = (q.shape[0], q.shape[1], k.shape[1])
    if built != wanted:
        raise UsageError(
            f"layout is of (B, T, S) = {built}, the tensors are {wanted}: build it anew for every "
            "forward pass"
        )
    options = (layout.block_size, layout.selection_scope)
    if options != (spec.block_size, spec.selection_scope):
        raise UsageError(
            f"layout is of block size and scope {options}, the spec says "
            f"{(spec.block_size, spec.selection_scope)}: build it from the same spec"
        )
    if layout.order.device != q.device:
        raise UsageError(f"layout is on {layout.order.device}, q on {q.device}: want one device")


def check_released_domain(
    q: Tensor,
    k: Tensor,
    *,
    packed: bool,
    attention_mask: Tensor | None = None,
    q_offset: int | None = None,
    with_layout: bool = False,
) -> None:
    """The `released` preset: 28 and 4 heads, one unpadded sample, rows that end the keys."""
    heads = (q.shape[2], k.shape[2])
    came = {
        f"{heads[0]} query and {heads[1]} KV heads": heads != (NUM_QUERY_HEADS, NUM_KV_HEADS),
        f"a batch of {q.shape[0]}": q.shape[0] != 1,
        "no query row": q.shape[1] == 0,
        "packed samples": packed,
        "padding": attention_mask is not None and not bool(attention_mask.all()),
        f"q_offset={q_offset}": q_offset not in (None, k.shape[1] - q.shape[1]),
        "a layout": with_layout,
    }
    found = [what for what, wrong in came.items() if wrong]
    if found:
        raise UsageError(
            f"{' and '.join(found)} with the released preset: it exists for {NUM_QUERY_HEADS} "
            f"query and {NUM_KV_HEADS} KV heads and one whole unpadded sample; use "
            "NSASpec.paper() for anything else"
        )
