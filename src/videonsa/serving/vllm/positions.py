"""Position ids of a prompt, from what vLLM knows of its images and videos."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from videonsa.models.methods import AttentionMethod
from videonsa.models.rope import TokenType, mrope_position_ids


def prompt_positions(
    tokens: Sequence[int], features: Sequence[Any], *, config: Any, method: AttentionMethod
) -> tuple[Tensor, int]:
    """Position ids as the engine computes them.

    Args:
        tokens: ids of the prompt.
        features: vLLM's images and videos in it, with the fields of the media processor.
        config: of the model.
        method: how its tokens attend, which may fix temporal ids.

    Returns:
        int64 `[3, L]`, and the difference of the next position to L.
    """
    types = torch.full((len(tokens),), TokenType.TEXT, dtype=torch.int64)
    grids, times = [], []
    for feature in sorted(features, key=lambda one: one.mm_position.offset):
        place = feature.mm_position
        kind = TokenType.VIDEO if feature.modality == "video" else TokenType.IMAGE
        types[place.offset : place.offset + place.length] = kind
        grids.append(tuple(feature.data[f"{feature.modality}_grid"].data.tolist()))
        if kind is TokenType.VIDEO:
            times.append(feature.data["video_seconds"].data.tolist())
    vision = config.vision_config
    ids, following = mrope_position_ids(
        types,
        grids,
        times,
        tokens_per_second=vision.tokens_per_second,
        merge_size=vision.spatial_merge_size,
        temporal_ids=method.temporal_ids or config.nsa_spec.temporal_ids,
    )
    return ids, following - len(tokens)
