"""Keys and values in 8 bits: int8 levels, a scale for each row and head, one for each channel.

A value is `level * rows * channels`. The scale of a channel is the geometric mean of its largest
and its mean magnitude. Without it the few channels that the biases of published Qwen2.5 models make
large would set the step of all others; the largest alone would follow a single huge row, such as
the first token's, and the mean alone would make that row coarse.

Tests bound the error: of keys and values, also beside channels that are much larger, and of the
logits after a question.
"""

import torch
from torch import Tensor

from videonsa.models.stored_cache.tensor_files import pieces_of

_LEVELS = 127


def channel_scales(sample: Tensor) -> Tensor:
    """Scales of the channels of one sample `[S, H, D]`, float32 `[H, D]`.

    Values that are not finite do not count.
    """
    largest = total = sample.new_zeros(sample.shape[1:], dtype=torch.float32)
    for piece in pieces_of(sample[None]):
        sizes = _as_float32(piece).abs_().nan_to_num_(0.0, 0.0, 0.0)
        largest, total = largest.maximum(sizes.amax(0)), total + sizes.sum(0)
    scales = (largest * (total / max(len(sample), 1))).sqrt()
    return torch.where(scales > 0, scales, 1.0)


def row_scales(rows: Tensor, channels: Tensor) -> Tensor:
    """Scales float16 `[n, H]` of rows `[n, H, D]`, with those of the channels `[H, D]`."""
    sizes = _as_float32(rows).mul_(channels.reciprocal()).abs_()
    return (sizes.amax(-1) / _LEVELS).half()


def to_levels(rows: Tensor, scales: Tensor, channels: Tensor) -> Tensor:
    """Levels int8 `[n, H, D]` of rows `[n, H, D]`."""
    factors = torch.where(scales == 0, 1.0, scales.float().reciprocal())
    levels = _as_float32(rows).mul_(channels.reciprocal()).mul_(factors[..., None])
    return levels.round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)


def _as_float32(rows: Tensor) -> Tensor:
    """A copy, so that the rest can go on in place: a CPU then takes half the time."""
    return rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def from_levels(levels: Tensor, scales: Tensor, channels: Tensor) -> Tensor:
    """Rows float32 `[n, H, D]` of levels; NaN where a row held what is not finite."""
    return levels.float().mul_(scales.float()[..., None]).mul_(channels)
