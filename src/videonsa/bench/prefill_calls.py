"""What `bench prefill` times of a language model: a prefill, and the token after it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videonsa.bench.clip_rows import TEXT_ROWS, Clip
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.encoded_clip import part_size
from videonsa.models.cache import VideoNSACache
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.compression import Kept, TokenCompression
from videonsa.models.methods.pairs import causal_pairs
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.shape import shape_of_config

SOME_TOKEN = 20


class PrefillCalls(NamedTuple):
    """A prefill that fills a cache, and what can be done once it did."""

    prefill: Callable[[], None]
    step: Callable[[], None]
    """One token after what the cache holds."""
    share: Callable[[], float | None]
    """Of the query-key pairs of dense attention to the whole prompt, those that the prefill
    computed; None where they were not counted. Before any step."""


def prefill_calls(
    model: VideoNSAForConditionalGeneration,
    clip: Clip,
    method: AttentionMethod,
    embeds: Tensor,
    **options: Any,
) -> PrefillCalls:
    """Of the rows of a prompt.

    Args:
        model: what is called.
        clip: the prompt.
        method: how its tokens attend.
        embeds: `[1, T, hidden]`, the rows of the prompt.
        options: more arguments of the prefill.
    """
    caches: list[VideoNSACache] = []

    def prefill() -> None:
        caches[:] = [VideoNSACache()]
        model(
            **clip.inputs,
            inputs_embeds=embeds,
            past_key_values=caches[0],
            method=method,
            logits_to_keep=1,
            **options,
        )

    return _calls(model, clip, method, prefill, caches)


class CompressedClip:
    """A clip of frames of noise, of which a method keeps some tokens."""

    def __init__(
        self, model: VideoNSAForConditionalGeneration, clip: Clip, method: TokenCompression
    ) -> None:
        self._model, self._clip, self._method = model, clip, method
        self._kept: Kept | None = None

    def encode(self) -> None:
        """The vision tower, with what the method asks of it."""
        self._kept = self._model.encode_kept(_frames(self._clip, self._model), method=self._method)

    def calls(self, recorder: Recorder) -> PrefillCalls:
        """Of the tokens kept, once the clip is encoded."""
        assert self._kept is not None, "encode it first"
        model, method, (before, _) = self._model, self._method, TEXT_ROWS
        ids = self._clip.inputs["input_ids"][0]
        gone = self._clip.tokens - len(self._kept.features)
        left = torch.cat(
            [ids[: before + self._clip.tokens - gone], ids[before + self._clip.tokens :]]
        )
        seconds = tuple(map(float, range(self._clip.grid[0])))
        vision = EncodedVision(
            "video", self._kept.features, self._clip.grid, seconds, self._kept.places
        )
        passage = Context(model, method=method).passage(left[None], [vision])
        caches: list[VideoNSACache] = []

        def prefill() -> None:
            caches[:] = [VideoNSACache()]
            context = Context(model, method=method, cache=caches[0])
            context.read(passage, recorder=recorder)

        return _calls(model, self._clip, method, prefill, caches)


def _calls(
    model: VideoNSAForConditionalGeneration,
    clip: Clip,
    method: AttentionMethod,
    prefill: Callable[[], None],
    caches: list[VideoNSACache],
) -> PrefillCalls:
    token = torch.full((1, 1), SOME_TOKEN, device=model.device)

    def step() -> None:
        model(input_ids=token, past_key_values=caches[0], method=method)

    def share() -> float | None:
        computed = caches[0].computed
        dense = causal_pairs(clip.num_rows) * len(model.decoder_layers)
        return None if computed is None else computed.total() / dense

    return PrefillCalls(prefill, step, share)


def _frames(clip: Clip, model: VideoNSAForConditionalGeneration) -> Iterator[Tensor]:
    """Its frames, uint8 `[n, 3, H, W]` a part: noise, so that no two are alike."""
    config = model.config.vision_config
    num_frames = clip.grid[0] * config.temporal_patch_size
    height, width = clip.frame
    generator = torch.Generator(model.device).manual_seed(0)
    size = part_size(height, width, shape_of_config(model.config.to_dict()).vision)
    for first in range(0, num_frames, size):
        count = min(size, num_frames - first)
        yield torch.randint(
            256,
            (count, 3, height, width),
            generator=generator,
            device=model.device,
            dtype=torch.uint8,
        )
