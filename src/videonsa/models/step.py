"""What the attention of every layer is told about one forward step, worked out once."""

import torch
from torch import Tensor

from videonsa.models.attention import AttentionStep
from videonsa.models.cache import VideoNSACache
from videonsa.models.choice import AttentionChoice
from videonsa.models.distributed.packed import cumulative
from videonsa.models.rows import NewRows
from videonsa.ops.layout import HybridLayout, hybrid_layout
from videonsa.ops.spec import NSASpec


def attention_step(
    rows: NewRows, cache: VideoNSACache | None, choice: AttentionChoice
) -> AttentionStep:
    """Enter the rows into the cache, and put together what the layers need."""
    known = cache if cache is not None else VideoNSACache()
    known.append_rows(rows)
    padding = known.attention_mask if known.is_padded else None
    frame_sizes = torch.tensor(
        [size for sizes in known.frame_sizes for size in sizes], dtype=torch.int64
    )
    if choice.recorder is not None:
        choice.recorder.begin_step(known.vision_mask, padding, frame_sizes)
    # Without a vision row the hybrid layer is dense attention: no need for gates and streams.
    dense = choice.attention == "dense" or not rows.has_vision
    return AttentionStep(
        attention="dense" if dense else "nsa",
        spec=choice.spec,
        vision_mask=_vision_mask(rows, known, choice.spec),
        attention_mask=padding,
        layout=None if dense else _layout(rows, known, frame_sizes, choice),
        pieces=None if rows.lengths is None else [(n, n) for n in rows.lengths],
        backend=choice.backend,
        recorder=choice.recorder,
    )


def _layout(
    rows: NewRows, cache: VideoNSACache, frame_sizes: Tensor, choice: AttentionChoice
) -> HybridLayout | None:
    if choice.is_released:
        return None  # the released preset takes the sequence as it is
    return hybrid_layout(
        cache.vision_mask,
        spec=choice.spec,
        num_rows=rows.vision_mask.shape[1],
        attention_mask=cache.attention_mask,
        cu_seqlens_k=None if rows.lengths is None else cumulative(rows.lengths),
        frame_sizes=frame_sizes if choice.spec.block_size == "frame" else None,
    )


def _vision_mask(rows: NewRows, cache: VideoNSACache, spec: NSASpec) -> Tensor:
    """The rows that attend by NSA: by token ids, or as the released code finds them."""
    if spec.vision_mask == "token_ids" or cache.vision_mask.shape[1] > rows.vision_mask.shape[1]:
        return cache.vision_mask
    t, h, w = rows.position_ids
    off_diagonal: Tensor = (t != h) | (h != w)
    return off_diagonal & rows.attention_mask
