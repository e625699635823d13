"""`HybridLayout`: which rows are text and which are vision, worked out once a forward pass."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.arguments import check_int, check_readable, check_type
from videonsa.ops.spec import NSASpec
from videonsa.ops.triton.index import StreamIndex, batch_index
from videonsa.ops.varlen import (
    BlockTable,
    Sample,
    batch_sample,
    block_borders,
    block_table,
    check_on_borders,
    check_packing,
    packed_samples,
)

MAX_RUNS = 64
"""Pieces that a result is put together from; more are put in order by an index."""
MAX_TEXT_RUNS = 8
"""Of text rows that follow one another in a sample: each is a call of its own."""


class Places(NamedTuple):
    """Equally many places of b samples in a flat tensor."""

    shape: tuple[int, int]  # b, K
    first: int  # the first of all
    numbers: Tensor | None  # [b, K] int64; None: those of a sample follow one another
    step: int = 0  # from the first of a sample to that of the next; 0: they differ

    @classmethod
    def of(cls, samples: Sequence[Tensor | range], *, length: int | None = None) -> Self:
        """From the places of each sample: int64 `[K]` on the host, or a range of K.

        Args:
            samples: one or more.
            length: of the flat tensor, where b equal parts of it may hold one sample each.
        """
        count = len(samples[0])
        shape, first = (len(samples), count), int(samples[0][0]) if count else 0
        for step in (count, (length or 0) // len(samples)):
            runs = [range(first + i * step, first + i * step + count) for i in range(len(samples))]
            fits = step == count or (step * len(samples) == length and first + count <= step)
            if fits and all(
                isinstance(x, range) and x == y for x, y in zip(samples, runs, strict=True)
            ):
                return cls(shape, first, None, step)
        return cls(shape, first, torch.stack([_numbers(x) for x in samples]))

    def flat(self) -> Tensor:
        """All places, int64 `[b * K]`."""
        if self.numbers is not None:
            return self.numbers.flatten()
        num_samples, count = self.shape
        starts = self.first + self.step * torch.arange(num_samples)
        return (starts[:, None] + torch.arange(count)).flatten()

    def to(self, device: torch.device) -> Self:
        """The same places, for tensors on another device."""
        return self if self.numbers is None else self._replace(numbers=self.numbers.to(device))

    def take(self, x: Tensor) -> Tensor:
        """Rows of x `[B, L, ...]` -> `[b, K, ...]`: a view where they follow one another."""
        flat, (num_samples, count) = x.flatten(0, 1), self.shape
        if self.numbers is not None:
            rows = flat.index_select(0, self.numbers.flatten())
        elif self.step == count:
            rows = flat.narrow(0, self.first, num_samples * count)
        else:
            samples = flat.view(num_samples, self.step, *x.shape[2:])
            return samples.narrow(1, self.first, count)
        return rows.view(*self.shape, *x.shape[2:])


def _numbers(places: Tensor | range) -> Tensor:
    return torch.arange(places.start, places.stop) if isinstance(places, range) else places


class TextGroup(NamedTuple):
    """Samples with equally many text rows and keys. Rows count in B * T, keys in B * S."""

    rows: Places  # [b, Nt]; rows that are padding stand here too
    keys: Places  # [b, Nk]
    positions: Tensor  # [b, Nt] int64, ascending, among the sample's keys; -1 for padding
    key_mask: Tensor | None  # [b, Nk] bool; None where nothing is padding
    runs: tuple[tuple[int, int, int], ...] | None
    """All rows as runs of consecutive positions: first row, rows, keys that the last of them sees.
    None where they are not the same in all samples, or many, or where there is padding."""


class VisionGroup(NamedTuple):
    """Samples with equally many vision rows and vision keys."""

    rows: Places  # [b, Nv]
    keys: Places  # [b, Mv]: the vision stream
    first_row: int  # position in the stream of the first row
    blocks: BlockTable
    stream: StreamIndex  # the same for the kernels


@dataclass(frozen=True, slots=True)
class HybridLayout:
    """Text rows, vision rows and blocks of one forward pass; the same for all layers.

    Built by `hybrid_layout` with at most one transfer from the device, so that a model of many
    layers does not repeat it.
    """

    num_samples: int
    num_rows: int
    num_keys: int
    block_size: int | str
    selection_scope: str
    text: tuple[TextGroup, ...]
    vision: tuple[VisionGroup, ...]
    order: Tensor
    """`[B * T]` int64: where each row stands among the rows of all vision, then all text groups."""
    num_alike: int
    """The rows are so many equal parts, and the runs are those of each: the number of samples where
    all have text and vision at the same places, else 1."""
    runs: tuple[tuple[int, int, int], ...] | None
    """The order as runs of rows: which group, its first and its last row but one; None: too many.
    Those of a group follow one another."""

    def to(self, device: torch.device) -> Self:
        """The same layout with its tensors on another device."""
        return replace(
            self,
            text=tuple(
                group._replace(
                    rows=group.rows.to(device),
                    keys=group.keys.to(device),
                    positions=group.positions.to(device),
                    key_mask=None if group.key_mask is None else group.key_mask.to(device),
                )
                for group in self.text
            ),
            vision=tuple(
                group._replace(
                    rows=group.rows.to(device),
                    keys=group.keys.to(device),
                    blocks=group.blocks._replace(offsets=group.blocks.offsets.to(device)),
                    stream=group.stream.to(device),
                )
                for group in self.vision
            ),
            order=self.order.to(device),
        )

    def by_group(self, x: Tensor) -> Iterator[Tensor]:
        """The rows of x `[B, T, ...]` of each group, vision and then text: each `[b, K, ...]`.

        Cut into runs and joined, as in `in_order`: the gradient of either is one pass of the other.
        """
        places = [group.rows for group in self.vision] + [group.rows for group in self.text]
        if self.runs is None:
            yield from (own.take(x) for own in places)
            return
        rows = x.flatten(0, 1).unflatten(0, (self.num_alike, -1))
        pieces = defaultdict(list)
        for run, piece in zip(self.runs, _cut(rows, self.runs), strict=True):
            pieces[run[0]].append(piece)
        for group, own in enumerate(places):
            rows = _joined(pieces[group])
            yield rows if self.num_alike > 1 else rows[0].unflatten(0, own.shape)

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all groups, each `[b, K, ...]`, in sequence order: `[B * T, ...]`."""
        if self.runs is None:
            return torch.cat([x.flatten(0, 1) for x in parts]).index_select(0, self.order)
        runs = defaultdict(list)
        for run in self.runs:
            runs[run[0]].append(run)
        pieces = [
            iter(_cut(x if self.num_alike > 1 else x.flatten(0, 1)[None], runs[group]))
            for group, x in enumerate(parts)
        ]
        return _joined([next(pieces[group]) for group, _, _ in self.runs]).flatten(0, 1)


def _cut(x: Tensor, runs: Sequence[tuple[int, int, int]]) -> Sequence[Tensor]:
    """Along the second dimension."""
    return [x] if len(runs) == 1 else x.split([stop - start for _, start, stop in runs], dim=1)


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def hybrid_layout(
    vision_mask: Tensor,
    *,
    spec: NSASpec,
    num_rows: int,
    attention_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    q_offset: int | None = None,
    frame_sizes: Tensor | Sequence[int] | None = None,
) -> HybridLayout:
    """Work out the rows, keys and blocks of `hybrid_attention`, whose arguments these are.

    Args:
        vision_mask: `[B, S]` bool over the keys.
        spec: a spec of the `paper` preset; its block size and selection scope are used.
        num_rows: T.
        attention_mask: `[B, S]` bool over the keys, False for padding.
        cu_seqlens_q: `[N + 1]` int32 over the rows, B = 1.
        cu_seqlens_k: `[N + 1]` int32 over the keys, B = 1.
        q_offset: key position of the first row; not with cu_seqlens.
        frame_sizes: tokens of each frame of the vision streams, samples concatenated.

    Raises:
        ValueError: any of them that does not fit the others.
    """
    check_type(spec, NSASpec, "spec")
    check_int(num_rows, "num_rows")
    if q_offset is not None:
        check_int(q_offset, "q_offset")
    for name, tensor in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if tensor is not None:
            check_type(tensor, Tensor, name)
    _check_masks(vision_mask, attention_mask)
    num_samples, num_keys = vision_mask.shape
    samples = _samples((num_samples, num_rows, num_keys), cu_seqlens_q, cu_seqlens_k, q_offset)
    valid = torch.ones_like(vision_mask) if attention_mask is None else attention_mask
    kinds = torch.stack([vision_mask & valid, valid]).flatten(1).cpu()  # [2, B * S]
    split = [_split(sample, kinds[0], kinds[1]) for sample in samples]
    device = vision_mask.device
    vision = _vision_groups(split, spec, frame_sizes, device, flat_keys=vision_mask.numel())
    text = _text_groups(split)
    groups = [x.rows.flat() for x in vision] + [x.rows.flat() for x in text]
    rows = torch.cat(groups)
    order = torch.empty_like(rows)
    order[rows] = torch.arange(len(rows))
    num_alike, runs = _runs(order, [len(group) for group in groups], num_samples=len(split))
    return HybridLayout(
        num_samples=num_samples,
        num_rows=num_rows,
        num_keys=num_keys,
        block_size=spec.block_size,
        selection_scope=spec.selection_scope,
        text=text,
        vision=vision,
        order=order,
        num_alike=num_alike,
        runs=runs,
    ).to(device)


def _samples(
    shape: tuple[int, int, int],
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    q_offset: int | None,
) -> list[Sample]:
    """Packed samples or those of a batch, flat; the shape is (B, T, S)."""
    num_samples, num_rows, num_keys = shape
    packed = check_packing(num_samples, cu_seqlens_q, cu_seqlens_k, q_offset)
    if num_rows < 1:
        raise UsageError(f"num_rows={num_rows}: want at least one query row")
    if packed:
        return packed_samples(cu_seqlens_q, cu_seqlens_k, num_rows=num_rows, num_keys=num_keys)
    one = batch_sample(num_rows, num_keys, q_offset)
    return [
        one._replace(first_row=i * num_rows, first_key=i * num_keys) for i in range(num_samples)
    ]


def _runs(
    order: Tensor, lengths: Sequence[int], *, num_samples: int
) -> tuple[int, tuple[tuple[int, int, int], ...] | None]:
    """`num_alike` and `runs` from the order and the rows of each group, on the host."""
    ends = torch.tensor(lengths).cumsum(0)
    group = torch.searchsorted(ends, order, right=True)
    num_alike = 1
    if len(order) % num_samples == 0:
        of_sample = group.view(num_samples, -1)
        num_alike = num_samples if bool((of_sample == of_sample[0]).all()) else 1
    first = slice(len(order) // num_alike)
    order, group = order[first], group[first]
    breaks = ((order.diff() != 1) | (group.diff() != 0)).nonzero()[:, 0] + 1
    if len(breaks) >= MAX_RUNS:
        return num_alike, None
    borders = [0, *breaks.tolist(), len(order)]
    within = order - (ends - torch.tensor(lengths))[group]
    return num_alike, tuple(
        (int(group[start]), int(within[start]), int(within[start]) + stop - start)
        for start, stop in pairwise(borders)
    )


class _Split(NamedTuple):
    """The rows and keys of one sample by kind, on the host; all indices flat."""

    text_rows: Tensor | range
    text_positions: Tensor
    keys: range
    key_mask: Tensor
    vision_rows: Tensor | range
    vision_keys: Tensor | range


def _split(sample: Sample, vision: Tensor, valid: Tensor) -> _Split:
    """Masks are bool `[B * S]`."""
    keys = range(sample.first_key, sample.first_key + sample.num_keys)
    is_vision, exists = (mask[keys.start : keys.stop] for mask in (vision, valid))
    rows = is_vision[sample.offset :]
    positions = _numbers(_true(~rows, sample.offset))
    return _Split(
        text_rows=_true(~rows, sample.first_row),
        text_positions=positions.masked_fill(~exists[positions], -1),
        keys=keys,
        key_mask=exists,
        vision_rows=_true(rows, sample.first_row),
        vision_keys=_true(is_vision, sample.first_key),
    )


def _true(mask: Tensor, first: int) -> Tensor | range:
    """The places of a bool mask `[L]` on the host, counted from `first`; a range where they can be.

    A long video is one run: none of its many keys is numbered, chunk after chunk.
    """
    flags = mask.numpy()
    count, start = np.count_nonzero(flags), int(flags.argmax()) if len(flags) else 0
    if flags[start : start + count].all():
        return range(first + start, first + start + count)
    return first + mask.nonzero()[:, 0]


def _text_groups(split: Sequence[_Split]) -> tuple[TextGroup, ...]:
    alike = defaultdict(list)
    for sample in split:
        alike[len(sample.text_rows), len(sample.keys)].append(sample)
    return tuple(
        TextGroup(
            rows=Places.of([sample.text_rows for sample in group]),
            keys=Places.of([sample.keys for sample in group]),
            positions=torch.stack([sample.text_positions for sample in group]),
            key_mask=_key_mask([sample.key_mask for sample in group]),
            runs=_text_runs(group),
        )
        for (num_rows, _), group in alike.items()
        if num_rows
    )


def _text_runs(group: Sequence[_Split]) -> tuple[tuple[int, int, int], ...] | None:
    """`TextGroup.runs`."""
    positions = group[0].text_positions
    breaks = (positions.diff() != 1).nonzero()[:, 0] + 1
    whole = all(
        torch.equal(sample.text_positions, positions) and bool(sample.key_mask.all())
        for sample in group
    )
    if not whole or len(breaks) >= MAX_TEXT_RUNS:
        return None
    borders = [0, *breaks.tolist(), len(positions)]
    return tuple(
        (first, stop - first, int(positions[stop - 1]) + 1) for first, stop in pairwise(borders)
    )


def _key_mask(masks: Sequence[Tensor]) -> Tensor | None:
    mask = torch.stack(list(masks))
    return None if bool(mask.all()) else mask


def _vision_groups(
    split: Sequence[_Split],
    spec: NSASpec,
    frame_sizes: Tensor | Sequence[int] | None,
    device: torch.device,
    *,
    flat_keys: int,
) -> tuple[VisionGroup, ...]:
    if not any(len(sample.vision_rows) for sample in split):
        return ()  # a decode step needs no blocks
    borders = block_borders(
        spec.block_size, frame_sizes, [len(sample.vision_keys) for sample in split]
    )
    alike = defaultdict(list)
    for sample, offsets in zip(split, borders, strict=True):
        num_rows, num_keys = len(sample.vision_rows), len(sample.vision_keys)
        if spec.selection_scope == "block":
            check_on_borders(offsets, num_keys - num_rows, num_rows)
        alike[num_rows, num_keys].append((sample, offsets))
    groups = []
    for (num_rows, num_keys), group in alike.items():
        if not num_rows:
            continue
        blocks = block_table([offsets for _, offsets in group], num_keys, device=device)
        stream = batch_index(
            blocks.offsets,
            num_samples=len(group),
            num_rows=num_rows,
            first_row=num_keys - num_rows,
            num_keys=num_keys,
            max_size=blocks.max_size,
            uniform=spec.block_size != "frame",
        )
        rows = Places.of([sample.vision_rows for sample, _ in group])
        keys = Places.of([sample.vision_keys for sample, _ in group], length=flat_keys)
        groups.append(VisionGroup(rows, keys, num_keys - num_rows, blocks, stream))
    return tuple(groups)


def _check_masks(vision_mask: Tensor, attention_mask: Tensor | None) -> None:
    check_type(vision_mask, Tensor, "vision_mask")
    check_readable(vision_mask, "vision_mask")
    for name, mask in (("vision_mask", vision_mask), ("attention_mask", attention_mask)):
        if mask is None:
            continue
        check_type(mask, Tensor, name)
        if mask.dtype != torch.bool or mask.dim() != 2:
            raise UsageError(f"{name} is {mask.dtype} {list(mask.shape)}: want bool [B, S]")
        if mask.shape != vision_mask.shape or mask.device != vision_mask.device:
            raise UsageError(
                f"{name} is {list(mask.shape)} on {mask.device}, vision_mask is "
                f"{list(vision_mask.shape)} on {vision_mask.device}: want the same"
            )
