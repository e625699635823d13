"""What the attention of every layer is told about one forward step, worked out once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Moment, Recorder


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTokens:
    """T new tokens of each of B samples: the last of the S keys that they may see."""

    num_tokens: int
    """T."""
    has_vision: bool
    """Whether one of them is a vision token."""
    vision_mask: Tensor
    """bool `[B, S]`: keys of images and videos."""
    attention_mask: Tensor | None
    """bool `[B, S]`: False where padded; None where nothing is."""
    position_ids: Tensor
    """int64 `[3, B, T]`."""
    frame_sizes: Callable[[], Sequence[int]]
    """Vision tokens of each frame (temporal patch or image) among the keys, samples concatenated;
    the last one may still be arriving, and where tokens left a frame may have none. Worked out
    when asked for: ask in `prepare` or `begin_step`, later steps add to them."""
    segments: Sequence[tuple[int, int]] | None = None
    """Queries and keys of each packed sample, or of each piece of a process's share; they are the
    last of its keys, and see no others."""
    is_last: bool = True
    """Whether no chunk of the same call follows."""

    @property
    def cumulative(self) -> tuple[Tensor | None, Tensor | None]:
        """The segments as `cu_seqlens` of queries and keys, int32 on the CPU."""
        if self.segments is None:
            return None, None
        queries, keys = (
            torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
            for counts in zip(*self.segments, strict=True)
        )
        return queries, keys

    def to(self, device: torch.device) -> Self:
        """The same tokens with their tensors on another device."""
        padding = self.attention_mask
        return replace(
            self,
            vision_mask=self.vision_mask.to(device),
            attention_mask=None if padding is None else padding.to(device),
            position_ids=self.position_ids.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionStep:
    """What the attention of every layer needs to know; made by `build_step`."""

    method: AttentionMethod
    tokens: StepTokens
    prepared: Any
    """What the method worked out for all layers."""
    gather_keys: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    """Turns the k and v of a process's own tokens into those of the S keys; with a cache, of all
    new tokens in order, which the cache then takes."""
    parts: "Sequence[StepPart] | None"
    """Of the tokens, where each part sees the keys up to its own last token only."""
    recorder: Recorder | None
    pairs: Callable[[], int | Tensor]
    """Query-key pairs of one query head in a layer, as the method counts them; once for all."""
    found: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """By layer, what `attend` found out about the new tokens, for `kept_after`."""
    copies: dict[torch.device, Self] = field(default_factory=dict, repr=False)
    """Of this step on other devices, made once for all their layers."""

    @property
    def wants_branches(self) -> bool:
        """Whether branch outputs, LSEs and the selection are to be given."""
        return self.recorder is not None and self.recorder.wants_branches

    def mark(self, layer: int, moment: Moment) -> None:
        """Tell the recorder that a layer has come so far."""
        if self.recorder is not None:
            self.recorder.mark(layer, moment)

    def to(self, device: torch.device | str) -> Self:
        """The step with its tensors on `device`; itself where they are there."""
        device = torch.device(device)
        if self.tokens.vision_mask.device == device:
            return self
        if device not in self.copies:
            prepared = None if self.prepared is None else self.prepared.to(device)
            moved = replace(self, tokens=self.tokens.to(device), prepared=prepared, copies={})
            self.copies[device] = moved
        return self.copies[device]


class StepPart(NamedTuple):
    """Tokens that follow one another, and see the first keys of their step."""

    num_tokens: int
    step: AttentionStep
    """As if these tokens were the last; its vision mask tells how many keys there are."""


def build_step(
    method: AttentionMethod,
    tokens: StepTokens,
    *,
    recorder: Recorder | None = None,
    gather_keys: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    parts: Sequence[StepPart] | None = None,
) -> AttentionStep:
    """The one place where a step is made.

    Args:
        method: how its tokens attend.
        tokens: which they are.
        recorder: told of the tokens here, then by the layers.
        gather_keys: of a process that shares the sequence.
        parts: in place of one preparation for all tokens.
    """
    if recorder is not None:
        recorder.begin_step(tokens)
    return AttentionStep(
        method=method,
        tokens=tokens,
        prepared=None if parts is not None else method.prepare(tokens),
        gather_keys=gather_keys,
        parts=parts,
        recorder=recorder,
        pairs=cache(lambda: method.step_pairs(tokens)),
    )
