"""The KV cache and what later steps must know about the rows already in it."""

import copy
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models._hf import DynamicCache, DynamicLayer
from videonsa.models.rows import NewRows, frames_begun

ROOM = 256
"""Rows that a layer has room for behind those it holds or is told to expect: so many tokens are
decoded without a copy of the cache."""


class RowMajorLayer(DynamicLayer):
    """Keys and values `[B, H, S, D]` that lie in memory as `[B, S, H, D]`, with room behind.

    So the projections give them and the kernels read them: nothing is turned on the way.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leave_memory()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, expected: int = 0, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values `[B, H, T, D]`; gives all. `expected` rows come in all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._more_keys.append(self.keys, key_states, expected)
        self.values = self._more_values.append(self.values, value_states, expected)
        return self.keys, self.values

    @classmethod
    def holding(cls, keys: Tensor, values: Tensor, *, num_rows: int) -> Self:
        """A layer that grows in memory `[B, M, H, D]`, the first `num_rows` of which are held."""
        layer = cls()
        layer.lazy_initialization(keys.transpose(1, 2), values.transpose(1, 2))
        layer.keys = layer._more_keys.begin(keys, num_rows)
        layer.values = layer._more_values.begin(values, num_rows)
        return layer

    def fork(self) -> Self:
        """A layer with the same rows; the room behind them stays with this one."""
        twin = copy.copy(self)
        twin._leave_memory()
        return twin

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the samples `beam_idx`, in that order; what they were taken from is freed."""
        super().reorder_cache(beam_idx)
        self._leave_memory()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the samples `indices`, in that order; what they were taken from is freed."""
        super().batch_select_indices(indices)
        self._leave_memory()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample `repeats` times; what they were taken from is freed."""
        super().batch_repeat_interleave(repeats)
        self._leave_memory()

    def offload(self) -> None:
        """Move keys and values to the CPU; their memory on the device is freed."""
        super().offload()
        self._leave_memory()

    def _leave_memory(self) -> None:
        """Grow in other memory than so far: it is another layer's, or keys and values left it."""
        self._more_keys, self._more_values = _Growing(), _Growing()


class _Growing:
    """Memory that has room for more rows than the tensor that it gave last."""

    def __init__(self) -> None:
        self._memory = self._given = torch.empty(0)

    def begin(self, memory: Tensor, num_rows: int) -> Tensor:
        """The first rows of memory `[B, M, H, D]`, to grow there."""
        self._memory = memory
        self._given = memory[:, :num_rows].transpose(1, 2)
        return self._given

    def append(self, held: Tensor, new: Tensor, expected: int) -> Tensor:
        """Rows `[B, H, S, D]` and new ones `[B, H, T, D]` together; new memory where need be."""
        rows = new.transpose(1, 2)
        start = held.shape[2] if held.numel() else 0
        end = start + rows.shape[1]
        if torch.is_grad_enabled():  # a graph may keep the rows held: they must not change
            known = held.transpose(1, 2) if start else rows[:, :0]
            return torch.cat([known, rows], dim=1).transpose(1, 2)
        if not self._has_room(held, end):
            size = max(end, expected) + ROOM
            self._memory = rows.new_empty(len(rows), size, *rows.shape[2:])
            if start:
                self._memory[:, :start] = held.transpose(1, 2)
        self._memory[:, start:end] = rows
        self._given = self._memory[:, :end].transpose(1, 2)
        return self._given

    def _has_room(self, held: Tensor, end: int) -> bool:
        """Whether the rows held are still those given last, in memory that may be written."""
        writable = torch.is_inference_mode_enabled() or not self._memory.is_inference()
        return held is self._given and writable and end <= self._memory.shape[1]


@dataclass(slots=True)
class CachedTokens:
    """What is known of the tokens whose keys layers hold, from `first_layer` on.

    Where tokens left after a layer, the layers behind it have a record of their own.
    """

    first_layer: int = 0
    vision_mask: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    """bool `[B, S]`: keys of images and videos."""
    attention_mask: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    """bool `[B, S]`: False where padded."""
    next_positions: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    """int64 `[B, S]`: the position id that text after each token would get."""
    frame_sizes: list[list[int]] = field(default_factory=list)
    """For each sample, merged tokens of each temporal patch or image so far."""
    is_padded: bool = False
    """Whether any token is padded: kept, so that a step need not look at the mask."""
    places: list[int] | None = None
    """Places of the tokens among those of the first layer; None: they are all there."""

    def append(self, rows: NewRows, places: Sequence[int] | None = None) -> None:
        """Take note of new tokens, which stand at `places` among those of the first layer.

        Raises:
            UsageError: another batch size than that of the tokens so far.
        """
        if not self.frame_sizes:
            self.vision_mask, self.attention_mask = rows.vision_mask, rows.attention_mask
            self.next_positions = rows.next_positions
            self.frame_sizes = [[] for _ in rows.frame_sizes]
        elif len(rows.vision_mask) != len(self.vision_mask):
            raise UsageError(
                f"a batch of {len(rows.vision_mask)} with a cache of {len(self.vision_mask)} "
                "samples: pass the cache of the same batch"
            )
        else:
            self.vision_mask = torch.cat([self.vision_mask, rows.vision_mask], dim=1)
            self.attention_mask = torch.cat([self.attention_mask, rows.attention_mask], dim=1)
            self.next_positions = torch.cat([self.next_positions, rows.next_positions], dim=1)
        for sizes, new in zip(self.frame_sizes, rows.frame_sizes, strict=True):
            sizes.extend(new)
        self.is_padded = self.is_padded or rows.is_padded
        if places is not None:
            self.places = [*(self.places or ()), *places]

    def count_below(self, num_rows: int) -> int:
        """How many of the first tokens of the first layer are here."""
        return num_rows if self.places is None else bisect_left(self.places, num_rows)

    def frames_among(self, num_rows: int) -> list[int]:
        """How many frames of each sample begin among the first tokens of the first layer."""
        own = slice(self.count_below(num_rows))
        counts = (self.vision_mask[:, own] & self.attention_mask[:, own]).sum(1).tolist()
        return [frames_begun(*one) for one in zip(self.frame_sizes, counts, strict=True)]

    def keep(self, num_rows: int, num_frames: Sequence[int]) -> None:
        """Forget all but those of the first tokens of the first layer.

        Args:
            num_rows: how many tokens of the first layer stay.
            num_frames: how many frames of each sample begin among them in the first layer; here,
                some of these may have no token.
        """
        count, begun = self.count_below(num_rows), self.frames_among(num_rows)
        self.frame_sizes = [
            sizes[:here] + [0] * (there - here)
            for sizes, here, there in zip(self.frame_sizes, begun, num_frames, strict=True)
        ]
        self.vision_mask = self.vision_mask[:, :count]
        self.attention_mask = self.attention_mask[:, :count]
        self.next_positions = self.next_positions[:, :count]
        if self.places is not None:
            self.places = self.places[:count]

    def select(self, samples: Tensor) -> None:
        """Keep these samples, in that order."""
        samples = samples.to(self.vision_mask.device)
        self.vision_mask = self.vision_mask[samples]
        self.attention_mask = self.attention_mask[samples]
        self.next_positions = self.next_positions[samples]
        self.frame_sizes = [list(self.frame_sizes[i]) for i in samples.tolist()]

    def fork(self) -> Self:
        """A record that grows on its own."""
        sizes = [list(one) for one in self.frame_sizes]
        return replace(self, frame_sizes=sizes, places=self.places and list(self.places))


class VideoNSACache(DynamicCache):
    """A growing KV cache that also remembers tokens: which are vision, which are padding, where.

    A later turn may bring more vision tokens; they attend to the vision keys kept here.
    """

    records: list[CachedTokens]
    """One, and another for each layer after which tokens left; by their first layers."""
    expected: int
    """Tokens that will come in all, as far as known: layers get memory for them at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layer_class_to_replicate = RowMajorLayer
        self.records = [CachedTokens()]
        self.expected = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values `[B, H, T, D]` to a layer; gives all."""
        found: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, expected=self.expected, **kwargs
        )
        return found

    @property
    def tokens(self) -> CachedTokens:
        """All tokens: those of the first layer."""
        return self.records[0]

    @property
    def next_position(self) -> list[int]:
        """The first free position id of each sample; empty while the cache is."""
        positions = self.tokens.next_positions
        return positions[:, -1].tolist() if positions.numel() else []

    def record_from(self, layer: int) -> CachedTokens | None:
        """The record that begins with a layer, if tokens left before it."""
        return next((record for record in self.records if record.first_layer == layer), None)

    def begin_record(self, layer: int, *, num_new: int) -> CachedTokens:
        """A record for the layers from this one on, without the new tokens of the step at hand.

        Args:
            layer: the first whose keys are fewer.
            num_new: tokens of the step in the first layer; some of them are about to leave.
        """
        number = bisect_left(self.records, layer, key=lambda record: record.first_layer)
        record = self.records[number - 1].fork()
        before = self.tokens.vision_mask.shape[1] - num_new
        record.keep(before, self.tokens.frames_among(before))
        if record.places is None:
            record.places = list(range(record.vision_mask.shape[1]))
        record.first_layer = layer
        self.records.insert(number, record)
        return record

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; `tokens_to_remove` is negative or counts them."""
        self.keep(max(self.tokens.vision_mask.shape[1] - abs(tokens_to_remove), 0))

    def keep(self, num_rows: int) -> None:
        """Forget all but the first tokens, also where layers do not hold equally many."""
        records = iter([*self.records[1:], None])
        record, following = self.records[0], next(records)
        for index, layer in enumerate(self.layers):
            while following is not None and following.first_layer <= index:
                record, following = following, next(records)
            if (more := layer.get_seq_length() - record.count_below(num_rows)) > 0:
                layer.crop(-more)
        num_frames = self.tokens.frames_among(num_rows)
        for record in self.records:
            record.keep(num_rows, num_frames)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the samples `beam_idx`, in that order."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the samples `indices`, in that order."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample `repeats` times."""
        super().batch_repeat_interleave(repeats)
        samples = torch.arange(len(self.tokens.frame_sizes), device=self.tokens.vision_mask.device)
        self._select(samples.repeat_interleave(repeats))

    def fork(self) -> Self:
        """A cache with the same tokens that grows on its own; no tensor is copied."""
        twin = copy.copy(self)
        # Rows that were given are never written again, so sharing them is safe.
        twin.layers = [layer.fork() for layer in self.layers]
        twin.records = [record.fork() for record in self.records]
        return twin

    def _select(self, samples: Tensor) -> None:
        for record in self.records:
            record.select(samples)


@contextmanager
def as_before_if_it_fails(cache: VideoNSACache | None) -> Iterator[None]:
    """Where the body fails, the cache forgets the rows that only some layers have."""
    if cache is None:
        yield
        return
    num_rows, records = cache.tokens.vision_mask.shape[1], list(cache.records)
    try:
        yield
    except BaseException:
        cache.keep(num_rows)
        cache.records = records
        raise
    finally:
        cache.expected = 0
