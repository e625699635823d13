"""Greedy answers after a cache that holds a video."""

from collections.abc import Set
from typing import Any

import torch

from videonsa.models.cache import VideoNSACache
from videonsa.models.modeling import VideoNSAForConditionalGeneration


def split_at_video(ids: list[int], vision_end: int) -> tuple[list[int], list[int]]:
    """What stands up to the end of the only video of a chat, and what after it.

    Args:
        ids: the chat.
        vision_end: id of the token that closes a video.
    """
    end = ids.index(vision_end) + 1
    return ids[:end], ids[end:]


@torch.inference_mode()
def write_answers(
    model: VideoNSAForConditionalGeneration,
    cache: VideoNSACache,
    first: dict[str, Any],
    *,
    stop_ids: Set[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Read the rest of a batch of prompts and answer each greedily; the cache grows.

    Args:
        model: in evaluation mode.
        cache: what was read before; empty where `first` is all.
        first: arguments of the model's forward for the rest of the prompts, all ending at the
            same place.
        stop_ids: tokens that end an answer.
        max_new_tokens: longest answer.

    Returns:
        The ids of each answer, without the one that ended it.
    """
    inputs, written = first, []
    ended: set[int] = set()
    for _ in range(max_new_tokens):
        logits = model(**inputs, past_key_values=cache, logits_to_keep=1).logits
        ids = logits.argmax(-1)  # [B, 1]
        column = ids[:, 0].tolist()
        written.append(column)
        ended |= {row for row, token in enumerate(column) if token in stop_ids}
        if len(ended) == len(column):
            break
        inputs = {"input_ids": ids}
    return [_until_stop(row, stop_ids) for row in map(list, zip(*written, strict=True))]


def _until_stop(row: list[int], stop_ids: Set[int]) -> list[int]:
    stops = [place for place, token in enumerate(row) if token in stop_ids]
    return row[: stops[0]] if stops else row
