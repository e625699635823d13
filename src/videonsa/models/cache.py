"""The KV cache and what later steps must know about the rows already in it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
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


class VideoNSACache(DynamicCache):
    """A growing KV cache that also remembers rows: which are vision, which are padding, where.

    A later turn may bring more vision rows; they attend to the vision keys kept here. The masks
    are `[B, S]` over the keys so far.
    """

    vision_mask: Tensor
    """bool `[B, S]`: keys of images and videos."""
    attention_mask: Tensor
    """bool `[B, S]`: False where padded."""
    next_positions: Tensor
    """int64 `[B, S]`: the position id that text after each row would get."""
    frame_sizes: list[list[int]]
    """For each sample, merged tokens of each temporal patch or image so far."""
    is_padded: bool
    """Whether any row is padded: kept, so that a step need not look at the mask."""
    expected: int
    """Rows that will come in all, as far as known: layers get memory for them at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layer_class_to_replicate = RowMajorLayer
        self.vision_mask = torch.empty(0, 0, dtype=torch.bool)
        self.attention_mask = torch.empty(0, 0, dtype=torch.bool)
        self.next_positions = torch.empty(0, 0, dtype=torch.int64)
        self.frame_sizes = []
        self.is_padded = False
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
    def next_position(self) -> list[int]:
        """The first free position id of each sample; empty while the cache is."""
        return self.next_positions[:, -1].tolist() if self.next_positions.numel() else []

    def append_rows(self, rows: NewRows) -> None:
        """Take note of new rows; their keys are appended by the layers.

        Raises:
            UsageError: another batch size than that of the cache.
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

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last rows; `tokens_to_remove` is negative or counts them."""
        self.keep(max(self.vision_mask.shape[1] - abs(tokens_to_remove), 0))

    def keep(self, num_rows: int) -> None:
        """Forget all but the first rows, also where layers do not hold equally many."""
        for layer in self.layers:
            if (more := layer.get_seq_length() - num_rows) > 0:
                layer.crop(-more)
        self.vision_mask = self.vision_mask[:, :num_rows]
        self.attention_mask = self.attention_mask[:, :num_rows]
        self.next_positions = self.next_positions[:, :num_rows]
        counts = (self.vision_mask & self.attention_mask).sum(1).tolist()
        self.frame_sizes = [
            sizes[: frames_begun(sizes, count)]
            for sizes, count in zip(self.frame_sizes, counts, strict=True)
        ]

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
        samples = torch.arange(len(self.frame_sizes), device=self.vision_mask.device)
        self._select(samples.repeat_interleave(repeats))

    def fork(self) -> Self:
        """A cache with the same rows that grows on its own; no tensor is copied."""
        twin = copy.copy(self)
        # Rows that were given are never written again, so sharing them is safe.
        twin.layers = [layer.fork() for layer in self.layers]
        twin.frame_sizes = [list(sizes) for sizes in self.frame_sizes]
        return twin

    def _select(self, samples: Tensor) -> None:
        samples = samples.to(self.vision_mask.device)
        self.vision_mask = self.vision_mask[samples]
        self.attention_mask = self.attention_mask[samples]
        self.next_positions = self.next_positions[samples]
        self.frame_sizes = [list(self.frame_sizes[i]) for i in samples.tolist()]


@contextmanager
def as_before_if_it_fails(cache: VideoNSACache | None) -> Iterator[None]:
    """Where the body fails, the cache forgets the rows that only some layers have."""
    if cache is None:
        yield
        return
    num_rows = cache.vision_mask.shape[1]
    try:
        yield
    except BaseException:
        cache.keep(num_rows)
        raise
    finally:
        cache.expected = 0
