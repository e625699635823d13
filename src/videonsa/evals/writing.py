"""Answers about a video that the cache holds: written greedily, or the likeliest of a few."""

import math
from collections.abc import Sequence, Set
from typing import Any

import torch

from videonsa.inference.generation import decode, not_finite
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.cache import VideoNSACache
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import AttentionMethod


def split_at_video(ids: list[int], vision_end: int) -> tuple[list[int], list[int]]:
    """A chat up to the end of its only video, and the rest.

    Args:
        ids: the chat.
        vision_end: id of the token that closes a video.
    """
    end = ids.index(vision_end) + 1
    return ids[:end], ids[end:]


def write_answers(
    model: VideoNSAForConditionalGeneration,
    cache: VideoNSACache,
    first: dict[str, Any],
    *,
    stop_ids: Set[int],
    max_new_tokens: int,
    method: AttentionMethod | None = None,
) -> list[list[int]]:
    """Read the rest of a batch of prompts and answer each greedily; the cache grows.

    The checkpoint's generation_config has no say: scores of models are compared.

    Args:
        model: in evaluation mode.
        cache: what was read before; empty where `first` is all.
        first: arguments of the model's forward for the rest of the prompts, all ending at the
            same place.
        stop_ids: tokens that end an answer.
        max_new_tokens: longest answer.
        method: how prompts and answers attend; None is as the model does.

    Returns:
        The ids of each answer, without the one that ended it.

    Raises:
        ModelError: logits that are not finite.
    """
    greedy = GenerationSettings(max_new_tokens=max_new_tokens)
    steps = decode(model, first, cache, settings=greedy, stop_ids=stop_ids, method=method)
    return [_until_stop(list(row), stop_ids) for row in zip(*steps, strict=True)]


def _until_stop(row: list[int], stop_ids: Set[int]) -> list[int]:
    stops = [place for place, token in enumerate(row) if token in stop_ids]
    return row[: stops[0]] if stops else row


@torch.inference_mode()
def likeliest_answer(
    model: VideoNSAForConditionalGeneration,
    cache: VideoNSACache,
    first: dict[str, Any],
    *,
    candidates: Sequence[list[int]],
    method: AttentionMethod | None = None,
) -> int:
    """Read the rest of one prompt and weigh answers to it; the cache grows by the prompt.

    Args:
        model: in evaluation mode.
        cache: what was read before; empty where `first` is all.
        first: arguments of the model's forward for the rest of the prompt, batch 1.
        candidates: the ids of each answer, with the token that ends it.
        method: how prompt and answers attend; None is as the model does.

    Returns:
        Which candidate the model would write with the highest probability; the first of equals.

    Raises:
        ModelError: logits that are not finite.
    """
    kept: dict[str, Any] = {"past_key_values": cache, "method": method}
    logits = model(**first, **kept, logits_to_keep=1).logits[:, -1:]
    length = cache.get_seq_length()
    scores = []
    for ids in candidates:
        rows = logits
        if len(ids) > 1:
            shown = torch.tensor([ids[:-1]], device=logits.device)
            rows = torch.cat([logits, model(input_ids=shown, **kept).logits], dim=1)
            cache.crop(length - cache.get_seq_length())
        wanted = torch.tensor(ids, device=logits.device)[:, None]
        scores.append(float(rows[0].float().log_softmax(-1).gather(1, wanted).sum()))
    if not all(map(math.isfinite, scores)):
        raise not_finite("an answer to weigh")
    return scores.index(max(scores))
