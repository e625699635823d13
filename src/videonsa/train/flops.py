"""Floating-point operations of a training step, counted from shapes; MFU is computed from them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from videonsa.models.shape import ModelShape, VisionShape
from videonsa.ops.spec import NSASpec

TRAINED = 3
"""The backward pass costs twice the forward pass: gradients of activations and of weights."""
_TOWER_WINDOW = 64
_TOWER_FULL_BLOCKS = 4
"""Patches in an attention window of the tower; tower blocks that attend to a whole frame."""


def step_flops(
    shape: ModelShape,
    spec: NSASpec | None,
    *,
    vision_masks: Sequence[NDArray[np.bool_]],
    frame_patches: Sequence[int],
    num_labels: int,
) -> int:
    """Operations of forward and backward over the sequences of a step.

    What activation checkpointing computes twice counts once.

    A product of `[m, k]` and `[k, n]` counts 2 m k n; norms, activations and softmax count nothing.

    Args:
        shape: of the model; all of its weights are trained.
        spec: None is dense attention.
        vision_masks: for each sample, bool `[T]`: which of its tokens are vision tokens.
        frame_patches: patches of each temporal patch of all videos and images.
        num_labels: tokens whose logits are computed.
    """
    rows = sum(len(mask) for mask in vision_masks)
    size, kv = shape.hidden_size, shape.num_kv_heads * shape.head_dim
    layer = 2 * size * size + 2 * size * kv + 3 * size * shape.intermediate_size
    layer += size * size + 3 * size * shape.num_heads if spec is not None else 0
    frame = max(frame_patches, default=0) // shape.vision.merge_size**2
    pairs = sum(attended_pairs(mask, spec, tokens_per_frame=frame) for mask in vision_masks)
    forward = shape.num_layers * (2 * rows * layer + 4 * size * pairs)
    forward += _tower_flops(shape.vision, frame_patches)
    return TRAINED * forward + head_flops(shape, num_labels)


def head_flops(shape: ModelShape, num_labels: int) -> int:
    """Operations of forward and backward of the output head, which only labels go through."""
    return TRAINED * 2 * num_labels * shape.hidden_size * shape.vocab_size


def attended_pairs(
    vision_mask: NDArray[np.bool_], spec: NSASpec | None, *, tokens_per_frame: int
) -> int:
    """(query, key) pairs of one sample in one layer; for NSA, summed over its branches.

    A selected block counts whole, also where it reaches beyond the query: it is computed, then
    masked.
    """
    seen = np.arange(1, len(vision_mask) + 1)
    if spec is None:
        return int(seen.sum())
    own = np.arange(1, int(vision_mask.sum()) + 1)
    block = tokens_per_frame if spec.block_size == "frame" else spec.block_size
    keys = {
        "compressed": own // max(block, 1),
        "selected": np.minimum(own, spec.num_selected_blocks * block),
        "window": np.minimum(own, spec.window_size),
    }
    return int(seen[~vision_mask].sum()) + sum(int(keys[name].sum()) for name in spec.branches)


def _tower_flops(vision: VisionShape, frame_patches: Sequence[int]) -> int:
    size, merged = vision.hidden_size, vision.hidden_size * vision.merge_size**2
    weights = vision.depth * (4 * size * size + 3 * size * vision.intermediate_size)
    weights += vision.patch_values * size
    weights += (merged * merged + merged * vision.out_hidden_size) // vision.merge_size**2
    full = min(_TOWER_FULL_BLOCKS, vision.depth)
    patches = sum(frame_patches)
    pairs = full * sum(count * count for count in frame_patches)
    pairs += (vision.depth - full) * sum(c * min(c, _TOWER_WINDOW) for c in frame_patches)
    return 2 * patches * weights + 4 * size * pairs
