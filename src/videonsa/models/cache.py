"""The KV cache and what later steps must know about the rows already in it."""

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models._hf import DynamicCache, DynamicLayer
from videonsa.models.computed import ComputedPairs
from videonsa.models.growing import GrowingRows
from videonsa.models.methods.pairs import causal_pairs
from videonsa.models.rows import NewRows, frames_begun


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
        for rows, new in zip(self._rows(), (key_states, value_states), strict=True):
            rows.append(new.transpose(1, 2), expected=expected)
            self._give()  # one by one, so that outgrown memory is freed at once
        return self.keys, self.values

    @classmethod
    def holding(cls, keys: Tensor, values: Tensor, *, num_rows: int) -> Self:
        """A layer that grows in memory `[B, M, H, D]`, the first `num_rows` of which are held."""
        layer = cls()
        layer.lazy_initialization(keys.transpose(1, 2), values.transpose(1, 2))
        layer._grown = GrowingRows.within(keys, num_rows), GrowingRows.within(values, num_rows)
        layer._give()
        return layer

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, M, H, D]`: those held, and what room there is behind them."""
        keys, values = self._rows()
        return keys.memory, values.memory

    def reserve(self, size: int, *, spare: int = 0) -> None:
        """Have memory for `size` rows, which others may write from the last row on.

        Where memory has to be taken for it, it has room for `spare` rows more.
        """
        for rows in self._rows():
            rows.reserve(size, spare=spare)
            self._give()

    def advance(self, num_new: int) -> None:
        """Count rows that others wrote into the memory, behind those so far."""
        for rows in self._rows():
            rows.advance(num_new)
        self._give()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last rows; their number may be negative. The memory stays."""
        if not self.is_initialized:
            return
        left = max(self.get_seq_length() - abs(tokens_to_remove), 0)
        for rows in self._rows():
            rows.crop(left)
        self._give()

    def remove(self, start: int, stop: int) -> None:
        """Forget the rows [start, stop)."""
        for rows in self._rows():
            rows.remove(start, stop)
            self._give()  # one by one, so that the memory left is freed at once

    def fork(self) -> Self:
        """A layer with the same rows; the room behind them stays with this one."""
        twin = copy.copy(self)
        if self.is_initialized:
            keys, values = self._rows()
            twin._grown = keys.fork(), values.fork()
            twin._give()
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
        """Grow in other memory than so far: keys and values left it."""
        self._grown: tuple[GrowingRows, GrowingRows] | None = None
        self._given: tuple[Tensor | None, Tensor | None] = None, None

    def _rows(self) -> tuple[GrowingRows, GrowingRows]:
        """Keys and values as they are held now, also where others set them."""
        held = self.keys, self.values
        if self._grown is None or any(x is not y for x, y in zip(held, self._given, strict=True)):
            # An empty layer of transformers holds a tensor of one dimension.
            keys, values = (x if x.dim() == 4 else x.new_empty(0, 0, 0, 0) for x in held)
            self._grown = GrowingRows(keys.transpose(1, 2)), GrowingRows(values.transpose(1, 2))
            self._given = held
        for rows, given in zip(self._grown, held, strict=True):
            rows.crop(given.shape[-2] if given.dim() == 4 else 0)  # an append was interrupted
        return self._grown

    def _give(self) -> None:
        keys, values = (rows.rows.transpose(1, 2) for rows in self._grown or ())
        self._given = self.keys, self.values = keys, values


@dataclass(slots=True)
class CachedTokens:
    """What is known of the tokens whose keys layers hold, from `first_layer` on.

    Where tokens left after a layer, the layers behind it have a record of their own.
    """

    first_layer: int = 0
    vision_rows: GrowingRows = field(default_factory=lambda: _no_rows(torch.bool))
    attention_rows: GrowingRows = field(default_factory=lambda: _no_rows(torch.bool))
    position_rows: GrowingRows = field(default_factory=lambda: _no_rows(torch.int64))
    frame_sizes: list[list[int]] = field(default_factory=list)
    """For each sample, merged tokens of each temporal patch or image so far."""
    is_padded: bool = False
    """Whether any token is padded: kept, so that a step need not look at the mask."""
    places: list[int] | None = None
    """Places of the tokens among those of the first layer; None: they are all there."""

    @property
    def vision_mask(self) -> Tensor:
        """Bool `[B, S]`: keys of images and videos."""
        return self.vision_rows.rows

    @property
    def attention_mask(self) -> Tensor:
        """Bool `[B, S]`: False where padded."""
        return self.attention_rows.rows

    @property
    def next_positions(self) -> Tensor:
        """Int64 `[B, S]`: the position id that text after each token would get."""
        return self.position_rows.rows

    def append(self, rows: NewRows, places: Sequence[int] | None = None) -> None:
        """Take note of new tokens, which stand at `places` among those of the first layer.

        Raises:
            UsageError: another batch size than that of the tokens so far.
        """
        if not self.frame_sizes:
            self.frame_sizes = [[] for _ in rows.frame_sizes]
        elif len(rows.vision_mask) != len(self.vision_mask):
            raise UsageError(
                f"a batch of {len(rows.vision_mask)} with a cache of {len(self.vision_mask)} "
                "samples: pass the cache of the same batch"
            )
        self.vision_rows.append(rows.vision_mask)
        self.attention_rows.append(rows.attention_mask)
        self.position_rows.append(rows.next_positions)
        for sizes, new in zip(self.frame_sizes, rows.frame_sizes, strict=True):
            sizes.extend(new)
        self.is_padded = self.is_padded or rows.is_padded
        if places is not None:
            self.places = self.places or []
            self.places.extend(places)

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
            sizes[: min(here, there)] + [0] * (there - here)
            for sizes, here, there in zip(self.frame_sizes, begun, num_frames, strict=True)
        ]
        for kept in (self.vision_rows, self.attention_rows, self.position_rows):
            kept.crop(count)
        if self.places is not None:
            self.places = self.places[:count]

    def remove(self, start: int, stop: int) -> None:
        """Forget the tokens [start, stop) of one sample: whole frames."""
        first, last = (self.frames_among(end)[0] for end in (start, stop))
        del self.frame_sizes[0][first:last]
        for kept in (self.vision_rows, self.attention_rows, self.position_rows):
            kept.remove(start, stop)

    def select(self, samples: Tensor) -> None:
        """Keep these samples, in that order."""
        samples = samples.to(self.vision_mask.device)
        self.vision_rows = GrowingRows(self.vision_mask[samples])
        self.attention_rows = GrowingRows(self.attention_mask[samples])
        self.position_rows = GrowingRows(self.next_positions[samples])
        self.frame_sizes = [list(self.frame_sizes[i]) for i in samples.tolist()]

    def fork(self) -> Self:
        """A record that grows on its own."""
        return replace(
            self,
            vision_rows=self.vision_rows.fork(),
            attention_rows=self.attention_rows.fork(),
            position_rows=self.position_rows.fork(),
            frame_sizes=[list(one) for one in self.frame_sizes],
            places=self.places and list(self.places),
        )


def _no_rows(dtype: torch.dtype) -> GrowingRows:
    return GrowingRows(torch.empty(0, 0, dtype=dtype))


class VideoNSACache(DynamicCache):
    """A growing KV cache that also remembers tokens: which are vision, which are padding, where.

    A later turn may bring more vision tokens; they attend to the vision keys kept here.
    """

    records: list[CachedTokens]
    """One, and another for each layer after which tokens left; by their first layers."""
    computed: ComputedPairs | None
    """Query-key pairs that filled it; None where they are not known any more."""
    expected: int
    """Tokens that will come in all, as far as known: layers get memory for them at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layer_class_to_replicate = RowMajorLayer
        self.records = [CachedTokens()]
        self.computed = ComputedPairs()
        self.expected = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values `[B, H, T, D]` to a layer; gives all."""
        found: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, expected=self.expected, **kwargs
        )
        return found

    def reserve(self, num_new: int, *, spare: int = 0) -> None:
        """Have memory for `num_new` more tokens in every layer; see `RowMajorLayer.reserve`."""
        for layer in self.layers:
            layer.reserve(layer.get_seq_length() + num_new, spare=spare)

    def advance(self, rows: NewRows) -> None:
        """Take note of text whose keys others wrote into the memory of all layers.

        It attended densely there.
        """
        num_new, before = rows.vision_mask.shape[1], self.tokens.vision_mask.shape[1]
        for layer in self.layers:
            layer.advance(num_new)
        places = range(before, before + num_new)
        for record in self.records:
            record.append(rows, None if record.places is None else places)
        if self.computed is not None:
            lengths = (layer.get_seq_length() for layer in self.layers)
            pairs = sum(causal_pairs(num_new, length) for length in lengths)
            self.computed.add(before + num_new, pairs)

    def count_pairs(self, pairs: Callable[[], float | Tensor]) -> None:
        """Count the query-key pairs of one layer, of the tokens that came last.

        Args:
            pairs: gives them, of one query head on average; asked where they are counted.
        """
        if self.computed is not None:
            self.computed.add(self.tokens.vision_mask.shape[1], pairs())

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
        if self.computed is not None:
            self.computed.keep(num_rows)

    def forget(self, start: int, stop: int) -> None:
        """Forget the tokens [start, stop), whole frames; later ones keep what they are.

        Raises:
            UsageError: a batch, or layers that do not hold the same tokens.
        """
        if len(self.records) > 1 or len(self.tokens.vision_mask) != 1:
            raise UsageError(
                "tokens to forget in a batch, or after tokens left inside the layers: want one "
                "sample whose layers hold the same tokens"
            )
        for layer in self.layers:
            layer.remove(start, stop)
        self.tokens.remove(start, stop)
        self.computed = None

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
        twin.computed = self.computed and self.computed.fork()
        return twin

    def _select(self, samples: Tensor) -> None:
        self.computed = None
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
