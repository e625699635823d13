"""Where samples and blocks begin and end: cu_seqlens, fixed and frame-aligned blocks."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence, Sized
from itertools import pairwise
from operator import index, sub
from typing import Literal, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.arguments import check_readable, shown
from videonsa.ops.spec import MAX_BLOCK_SIZE

NEVER = 2**62
"""An offset that no position reaches: it pads the shorter block lists of a batch."""


class Sample(NamedTuple):
    """One sample: its query rows are the last of its keys."""

    first_row: int
    num_rows: int
    first_key: int
    num_keys: int

    @property
    def offset(self) -> int:
        """Position, among the sample's keys, of its first query row."""
        return self.num_keys - self.num_rows


class BlockTable(NamedTuple):
    """The blocks of N streams of equal length; N = 1 where all share the same blocks."""

    offsets: Tensor
    """`[N, C + 1]` int64: block c covers the positions from offsets[c] up to offsets[c + 1]."""
    num_complete: int
    """Leading blocks that are complete within the keys, in at least one stream."""
    max_size: int
    """Tokens of the largest block."""

    @property
    def num_blocks(self) -> int:
        """Blocks begun, the last incomplete one counted."""
        return self.offsets.shape[1] - 1


def batch_sample(num_rows: int, num_keys: int, q_offset: int | None) -> Sample:
    """The extent that all samples of an unpacked batch share; keys after the rows are dropped.

    Raises:
        ValueError: rows that do not fit into the keys.
    """
    if q_offset is None:
        if num_rows > num_keys:
            raise UsageError(
                f"{num_rows} query rows but {num_keys} keys: the rows are the last of the keys, "
                "so pass at least as many keys"
            )
        return Sample(0, num_rows, 0, num_keys)
    if q_offset < 0 or q_offset + num_rows > num_keys:
        raise UsageError(
            f"q_offset={q_offset} with {num_rows} query rows and {num_keys} keys: want "
            f"0 <= q_offset <= {num_keys - num_rows}"
        )
    return Sample(0, num_rows, 0, q_offset + num_rows)


def check_packing(
    num_samples: int,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    q_offset: int | None,
) -> bool:
    """Whether samples are packed: then the batch is of one, and there is no q_offset.

    Raises:
        ValueError: cu_seqlens with either.
    """
    packed = cu_seqlens_q is not None or cu_seqlens_k is not None
    if packed and num_samples != 1:
        raise UsageError(
            f"cu_seqlens with a batch of {num_samples}: packed samples stand behind one another, "
            "B = 1"
        )
    if packed and q_offset is not None:
        raise UsageError(
            f"q_offset={q_offset} with cu_seqlens: the rows of a packed sample are its last; "
            "leave q_offset out"
        )
    return packed


def packed_samples(
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    *,
    num_rows: int,
    num_keys: int,
) -> list[Sample]:
    """The samples of a packed batch of one, from int32 `[N + 1]` cumulative lengths.

    `cu_seqlens_q` defaults to `cu_seqlens_k`.

    Raises:
        ValueError: lengths that do not describe the rows and keys.
    """
    if cu_seqlens_k is None:
        raise UsageError("cu_seqlens_q without cu_seqlens_k: pass the cumulative key lengths too")
    keys = _cumulative(cu_seqlens_k, "cu_seqlens_k", num_keys)
    rows = (
        _cumulative(cu_seqlens_k, "cu_seqlens_q (from cu_seqlens_k)", num_rows)
        if cu_seqlens_q is None
        else _cumulative(cu_seqlens_q, "cu_seqlens_q", num_rows)
    )
    check_same_samples(rows, keys)
    samples = []
    for i, ((q_start, q_stop), (k_start, k_stop)) in enumerate(
        zip(pairwise(rows), pairwise(keys), strict=True)
    ):
        if q_stop - q_start > k_stop - k_start:
            raise UsageError(
                f"sample {i} has {q_stop - q_start} query rows but {k_stop - k_start} keys: "
                "the rows are the last of the keys, so pass at least as many keys"
            )
        samples.append(Sample(q_start, q_stop - q_start, k_start, k_stop - k_start))
    return samples


def check_cumulative(cu_seqlens: Tensor, name: str) -> None:
    """Refuse lengths of another dtype or shape than int32 `[N + 1]`, N >= 1."""
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise UsageError(
            f"{name} is {cu_seqlens.dtype} {list(cu_seqlens.shape)}: want int32 [N + 1], N >= 1"
        )


def check_same_samples(rows: Sized, keys: Sized) -> None:
    """Refuse cumulative lengths of rows and keys that are of different numbers of samples."""
    if len(rows) != len(keys):
        raise UsageError(
            f"cu_seqlens_q names {len(rows) - 1} samples, cu_seqlens_k {len(keys) - 1}: want "
            "the same samples in both"
        )


def _cumulative(cu_seqlens: Tensor, name: str, total: int) -> list[int]:
    check_cumulative(cu_seqlens, name)
    check_readable(cu_seqlens, name)
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != total:
        raise UsageError(
            f"{name} runs from {bounds[0]} to {bounds[-1]}: want 0 to {total}, the packed length"
        )
    if any(stop < start for start, stop in pairwise(bounds)):
        raise UsageError(f"{name} decreases somewhere: want cumulative lengths, never falling")
    return bounds


def block_borders(
    block_size: int | Literal["frame"],
    frame_sizes: Tensor | Sequence[int] | None,
    num_keys: Sequence[int],
) -> list[list[int]]:
    """The block offsets of each sample, up to the block that holds its last key.

    Args:
        block_size: tokens a block, or "frame".
        frame_sizes: tokens of each frame in stream order, samples concatenated; read only with
            "frame". A sample takes frames until its keys are covered, so its last one may still be
            arriving. Frames after the last key are allowed where there is one sample.
        num_keys: keys so far of each sample.

    Returns:
        One list for each sample, beginning with 0. Every block holds a key of its sample, so that
        the starts of all blocks ascend where samples stand behind one another.

    Raises:
        ValueError: frames that do not cover the keys, or cover more samples than there are.
    """
    if block_size != "frame":
        return [list(range(0, keys + block_size, block_size)) for keys in num_keys]
    frames = _checked_frames(frame_sizes)
    borders, used = [], 0
    for i, keys in enumerate(num_keys):
        offsets = [0]
        while offsets[-1] < keys:
            if used == len(frames):
                raise UsageError(
                    f"frame_sizes end at token {offsets[-1]} of sample {i}, which has {keys} "
                    "vision keys: want frames that cover all keys"
                )
            offsets.extend(_cut(frames[used], start=offsets[-1], num_keys=keys))
            used += 1
        borders.append(offsets)
    if used < len(frames) and len(borders) > 1:
        raise UsageError(
            f"frame_sizes has {len(frames)} frames but the samples need {used}: want no frame "
            "whose first token is not there yet"
        )
    return borders


def _checked_frames(frame_sizes: Tensor | Sequence[int] | None) -> list[int]:
    if frame_sizes is None:
        raise UsageError("block_size='frame' without frame_sizes: pass the tokens of each frame")
    if isinstance(frame_sizes, Tensor):
        if frame_sizes.dim() != 1:
            raise UsageError(
                f"frame_sizes is {frame_sizes.dtype} {list(frame_sizes.shape)}: want 1-D ints"
            )
        check_readable(frame_sizes, "frame_sizes")
        frame_sizes = frame_sizes.tolist()
    wanted = "want 1-D ints, the tokens of each frame"
    if not isinstance(frame_sizes, Iterable) or isinstance(frame_sizes, str | bytes):
        raise UsageError(f"frame_sizes is {shown(frame_sizes)}: {wanted}")
    frames = []
    for size in frame_sizes:
        if isinstance(size, bool | Tensor) or not isinstance(size, SupportsIndex):
            raise UsageError(f"frame_sizes holds {shown(size)}: {wanted}")
        frames.append(index(size))
    if any(size < 1 for size in frames):
        raise UsageError(f"frame_sizes holds {min(frames)}: want at least 1 token in every frame")
    return frames


def _cut(frame_size: int, *, start: int, num_keys: int) -> list[int]:
    """Ends of the parts of a frame that begins at `start`: at most 128 tokens, larger first.

    Parts of an arriving frame that hold no key yet are no blocks: they would stand among those of
    the next sample.
    """
    parts = -(-frame_size // MAX_BLOCK_SIZE)
    size, larger = divmod(frame_size, parts)
    ends: list[int] = []
    for part in range(1, parts + 1):
        ends.append(start + size * part + min(part, larger))
        if ends[-1] >= num_keys:
            break
    return ends


def block_table(
    borders: Sequence[Sequence[int]], num_keys: int, *, device: torch.device
) -> BlockTable:
    """Stacks the borders of streams of `num_keys` keys each; equal borders are kept once."""
    distinct = borders if any(other != borders[0] for other in borders) else borders[:1]
    longest = max(map(len, distinct))
    padded = [[*offsets, *[NEVER] * (longest - len(offsets))] for offsets in distinct]
    return BlockTable(
        # Enqueued, so that the host need not wait for the device.
        offsets=torch.tensor(padded, dtype=torch.int64).to(device, non_blocking=True),
        num_complete=max(bisect_right(offsets, num_keys, lo=1) - 1 for offsets in distinct),
        max_size=max(max(map(sub, offsets[1:], offsets), default=1) for offsets in distinct),
    )


def check_on_borders(borders: Sequence[int], first_row: int, num_rows: int) -> None:
    """Refuse a query chunk that does not begin and end on block borders."""
    last = first_row + num_rows
    if num_rows and not {first_row, last} <= set(borders):
        raise UsageError(
            f"query rows {first_row} to {last} with selection_scope='block': want a chunk that "
            "begins and ends on block borders (block_size='frame' puts them between frames)"
        )
