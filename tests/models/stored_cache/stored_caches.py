"""Caches for the tests of this folder, and what is equal in two of them."""

from dataclasses import dataclass
from typing import Any

import torch
from tiny_models import SPEC, left_padded, prompt, tiny

from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import NSA, AttentionMethod


@dataclass(frozen=True)
class Leaving(NSA):
    """Every second vision token leaves after the first layer."""

    leaves_after = (0,)

    def kept_after(self, layer, hidden, step, following):
        vision = step.tokens.vision_mask[0, -step.tokens.num_tokens :]
        return ((vision.cumsum(0) % 2 == 1) | ~vision).nonzero()[:, 0]


@dataclass(frozen=True)
class Filled:
    """A cache and what filled it."""

    model: Any
    cache: VideoNSACache
    method: AttentionMethod | None = None

    def logits(self, cache: VideoNSACache) -> torch.Tensor:
        """Of a question that follows."""
        samples = len(self.cache.tokens.frame_sizes) or 1
        ids = torch.tensor([[40, 41, 42]]).expand(samples, -1)
        with torch.inference_mode():
            return self.model(ids, past_key_values=cache.fork(), method=self.method).logits


def filled(name: str) -> Filled:
    """A cache by what befell it."""
    model, cache = tiny(), VideoNSACache()
    inputs, method = prompt(6), None
    with torch.inference_mode():
        if name == "in chunks that cut frames":
            model(**inputs, past_key_values=cache, rows_per_chunk=7)
        elif name == "a padded batch":
            model(**left_padded([prompt(5), prompt(2, seed=1)]), past_key_values=cache)
        elif name == "cropped inside a frame":
            model(**inputs, past_key_values=cache)
            cache.crop(-10)
            assert cache.tokens.vision_mask.sum() % 4, "the last frame is not whole"
        elif name == "tokens left":
            method = Leaving(SPEC)
            model(**inputs, past_key_values=cache, method=method)
            assert len(cache.records) == 2
        elif name == "decoded, and samples chosen":
            model(**left_padded([prompt(2), prompt(2, seed=1)]), past_key_values=cache)
            model(torch.tensor([[40], [41]]), past_key_values=cache)
            cache.reorder_cache(torch.tensor([1, 0]))
        elif name == "bfloat16":
            model = model.bfloat16()
            model(**inputs, past_key_values=cache)
        else:
            assert name == "empty"
    return Filled(model, cache, method)


NAMES = (
    "in chunks that cut frames",
    "a padded batch",
    "cropped inside a frame",
    "tokens left",
    "decoded, and samples chosen",
    "bfloat16",
    "empty",
)


def assert_equal(found: VideoNSACache, wanted: VideoNSACache) -> None:
    """Bit by bit."""
    assert len(found.layers) == len(wanted.layers)
    for ours, theirs in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.keys.dtype == theirs.keys.dtype
    assert len(found.records) == len(wanted.records)
    for ours, theirs in zip(found.records, wanted.records, strict=True):
        for name in ("vision_mask", "attention_mask", "next_positions"):
            # A cache that was filled by hand has nothing there, on a device of its own.
            assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name).cpu()), name
        for name in ("first_layer", "frame_sizes", "is_padded", "places"):
            assert getattr(ours, name) == getattr(theirs, name), name
