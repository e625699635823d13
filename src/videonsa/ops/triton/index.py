"""Where rows, keys and blocks stand, flat over all samples, worked out on the device.

Kernels know no samples: row r has its own key, its current block, and the blocks it may see. Rows
are cut into tiles that never cross a sample, so that the positions of a tile are consecutive.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor

from videonsa.ops.spec import NSASpec
from videonsa.ops.varlen import (
    Sample,
    batch_sample,
    block_borders,
    block_table,
    check_cumulative,
    check_on_borders,
    check_same_samples,
    packed_samples,
)

FAR = 2**31 - 1
"""The start of a block that does not exist: no key is there."""


class StreamIndex(NamedTuple):
    """R rows, S keys and C blocks of N samples; tensors int32."""

    row_key: Tensor  # [R] the key at the row's own position
    row_block: Tensor  # [R] the block that holds it
    row_begin: Tensor  # [R] first block of the sample
    row_end: Tensor  # [R] one past the last complete block that the row sees
    block_start: Tensor  # [C] first key
    block_size: Tensor  # [C]
    sample_rows: Tensor  # [N + 1] cumulative
    max_blocks: int
    """Bound on the blocks of one sample."""
    max_size: int
    """Bound on the tokens of one block."""
    uniform: bool
    """Every block has `max_size` tokens."""
    rows_of_sample: int
    """Rows of every sample, or 0 where they differ."""

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One argument of a kernel: row_key, row_block, row_begin and row_end."""
        return self[:4]

    @property
    def blocks(self) -> tuple[Tensor, Tensor, int]:
        """One argument of a kernel: block_start, block_size and C."""
        return self.block_start, self.block_size, len(self.block_start)

    def to(self, device: torch.device) -> Self:
        """The same index on another device."""
        return type(self)._make(x.to(device) if isinstance(x, Tensor) else x for x in self)


class Tiles(NamedTuple):
    """Runs of at most `size` rows of one sample."""

    table: Tensor | None
    """`[num, 2]` int32, first row and rows; a tile beyond the last has 0. None: equal samples."""
    num: int
    size: int
    rows_of_sample: int

    @property
    def runs(self) -> tuple[Tensor | None, int]:
        """One argument of a kernel: table and rows_of_sample."""
        return self.table, self.rows_of_sample


class Samples(NamedTuple):
    """N samples whose query rows are contiguous in R and keys contiguous in S; int64 tensors."""

    rows: Tensor  # [N + 1] cumulative rows
    first_key: Tensor  # [N]
    first_position: Tensor  # [N] position of the first row among the sample's keys
    blocks: Tensor  # [N + 1] cumulative blocks


def stream_index(
    samples: Samples,
    block_start: Tensor,
    block_size: Tensor,
    *,
    num_rows: int,
    max_blocks: int,
    max_size: int,
    uniform: bool,
    rows_of_sample: int = 0,
) -> StreamIndex:
    """The index of R rows, from the flat block list of all samples (`block_start` ascending)."""
    rows = torch.arange(num_rows, device=block_start.device)
    sample = torch.searchsorted(samples.rows, rows, right=True) - 1
    key = (samples.first_key + samples.first_position - samples.rows[:-1])[sample] + rows
    block = torch.searchsorted(block_start, key, right=True) - 1
    complete = block_start[block] + block_size[block] <= key + 1
    return StreamIndex(
        row_key=key.int(),
        row_block=block.int(),
        row_begin=samples.blocks[sample].int(),
        row_end=(block + complete).int(),
        block_start=block_start.int(),
        block_size=block_size.int(),
        sample_rows=samples.rows.int(),
        max_blocks=max_blocks,
        max_size=max_size,
        uniform=uniform,
        rows_of_sample=rows_of_sample,
    )


def batch_index(
    offsets: Tensor,
    *,
    num_samples: int,
    num_rows: int,
    first_row: int,
    num_keys: int,
    max_size: int,
    uniform: bool,
) -> StreamIndex:
    """Samples of equally many rows and keys.

    Args:
        offsets: `[N, C + 1]` int64 block borders of each sample, or `[1, C + 1]` shared; borders
            beyond the keys may be any larger number.
        num_samples: B.
        num_rows: T.
        first_row: position of the first row.
        num_keys: S, the distance of two samples in the flat keys.
        max_size: tokens of the largest block.
        uniform: every block has that many.
    """
    device = offsets.device
    num_blocks = offsets.shape[1] - 1
    sample = torch.arange(num_samples + 1, device=device)
    first_key = sample[:-1, None] * num_keys
    start = offsets[:, :-1].expand(num_samples, -1).clamp(max=num_keys)
    size = offsets.diff().clamp(max=max_size).expand(num_samples, -1)
    size = torch.where(start < num_keys, size, 0)
    return stream_index(
        Samples(
            rows=sample * num_rows,
            first_key=first_key[:, 0],
            first_position=torch.full_like(sample[:-1], first_row),
            blocks=sample * num_blocks,
        ),
        (start + first_key).flatten(),
        size.flatten(),
        num_rows=num_samples * num_rows,
        max_blocks=num_blocks,
        max_size=max_size,
        uniform=uniform,
        rows_of_sample=num_rows,
    )


def uniform_index(
    block_size: int,
    *,
    num_samples: int,
    num_rows: int,
    first_row: int,
    num_keys: int,
    device: torch.device,
) -> StreamIndex:
    """`batch_index` for blocks of one size, with few operations: short streams feel each."""
    last = first_row + num_rows
    num_blocks = -(-last // block_size)

    def arange(start: int, stop: int, step: int = 1) -> Tensor:
        return torch.arange(start, stop, step, dtype=torch.int32, device=device)

    position = arange(first_row, last)
    start = arange(0, num_blocks * block_size, block_size)
    row_key, row_block, row_end = position, position // block_size, (position + 1) // block_size
    row_begin = torch.zeros_like(position)
    if num_samples > 1:
        sample = arange(0, num_samples)[:, None]
        row_key = (row_key + sample * num_keys).flatten()
        row_block, row_end, row_begin = (
            (x + sample * num_blocks).flatten() for x in (row_block, row_end, row_begin)
        )
        start = (start + sample * num_keys).flatten()
    return StreamIndex(
        row_key=row_key,
        row_block=row_block,
        row_begin=row_begin,
        row_end=row_end,
        block_start=start,
        block_size=torch.full_like(start, block_size),
        sample_rows=arange(0, num_samples * num_rows + 1, num_rows),
        max_blocks=num_blocks,
        max_size=block_size,
        uniform=True,
        rows_of_sample=num_rows,
    )


def packed_index(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *, num_rows: int, num_keys: int, block_size: int
) -> StreamIndex:
    """Packed samples with blocks of one size; the lengths are never read by the host."""
    rows, keys = cu_seqlens_q.long(), cu_seqlens_k.long()
    num_blocks = (keys.diff() + block_size - 1) // block_size
    blocks = torch.cat([num_blocks.new_zeros(1), num_blocks.cumsum(0)])
    bound = num_keys // block_size + len(num_blocks)
    block = torch.arange(bound, device=keys.device)
    sample = (torch.searchsorted(blocks, block, right=True) - 1).clamp(max=len(num_blocks) - 1)
    exists = block < blocks[-1]
    start = keys[sample] + (block - blocks[sample]) * block_size
    return stream_index(
        Samples(rows, keys[:-1], keys.diff() - rows.diff(), blocks),
        torch.where(exists, start, FAR),
        torch.where(exists, block_size, 0),
        num_rows=num_rows,
        max_blocks=min(bound, num_keys // block_size + 1),
        max_size=block_size,
        uniform=True,
    )


def row_tiles(index: StreamIndex, size: int, *, aligned: bool = False) -> Tiles:
    """All rows in tiles of at most `size`; their number is a bound from shapes alone.

    `aligned`: tiles also end with the blocks, where blocks are at least two tiles long. The rows of
    a frame agree on their blocks far more than the rows of two.
    """
    num_samples, num_rows = len(index.sample_rows) - 1, len(index.row_key)
    on_blocks = aligned and index.max_size >= 2 * size
    if index.rows_of_sample and (not on_blocks or (index.uniform and index.max_size % size == 0)):
        num = num_samples * -(-index.rows_of_sample // size)
        return Tiles(None, num, size, index.rows_of_sample)
    if on_blocks:
        block = torch.arange(
            len(index.block_start) + 1, dtype=torch.int32, device=index.row_key.device
        )
        runs = torch.searchsorted(index.row_block, block, out_int32=True)
    else:
        runs = index.sample_rows
    return _tiles_of_runs(runs, size, num_rows=num_rows)


def _tiles_of_runs(runs: Tensor, size: int, *, num_rows: int) -> Tiles:
    """Tiles of at most `size` rows that never cross a run: `runs` `[N + 1]` cumulative rows."""
    num_runs = len(runs) - 1
    per_run = (runs.diff() + size - 1) // size
    first_tile = torch.cat([per_run.new_zeros(1), per_run.cumsum(0)])
    bound = min(num_rows, -(-num_rows // size) + num_runs - 1)
    tile = torch.arange(bound, device=runs.device)
    run = (torch.searchsorted(first_tile, tile, right=True) - 1).clamp(max=num_runs - 1)
    first = runs[run] + (tile - first_tile[run]) * size
    count = (runs[run + 1] - first).clamp(min=0, max=size)
    table = torch.stack([torch.where(count > 0, first, 0), count], dim=1).int().contiguous()
    return Tiles(table, bound, size, 0)


def kernel_index(
    q: Tensor,
    k: Tensor,
    *,
    spec: NSASpec,
    q_offset: int | None,
    frame_sizes: Tensor | Sequence[int] | None,
) -> tuple[StreamIndex, int]:
    """The index of an unpacked batch, and the keys of a sample that its rows reach.

    q `[B, T, HQ, D]`, k `[B, S, H, D]`; S of the index is that number of keys.

    Raises:
        ValueError: rows that do not fit into the keys, frames that do not cover them, or rows
            off the block borders where all rows of a block share a selection.
    """
    sample = batch_sample(q.shape[1], k.shape[1], q_offset)
    size = spec.block_size
    if size != "frame" and spec.selection_scope == "token":
        return _uniform(size, sample, q), sample.num_keys
    borders = block_borders(size, frame_sizes, [sample.num_keys] * q.shape[0])
    if spec.selection_scope == "block":
        for offsets in borders:
            check_on_borders(offsets, sample.offset, sample.num_rows)
    if size != "frame":
        return _uniform(size, sample, q), sample.num_keys
    blocks = block_table(borders, sample.num_keys, device=q.device)
    index = batch_index(
        blocks.offsets,
        num_samples=q.shape[0],
        num_rows=sample.num_rows,
        first_row=sample.offset,
        num_keys=sample.num_keys,
        max_size=blocks.max_size,
        uniform=False,
    )
    return index, sample.num_keys


def _uniform(size: int, sample: Sample, q: Tensor) -> StreamIndex:
    return uniform_index(
        size,
        num_samples=q.shape[0],
        num_rows=sample.num_rows,
        first_row=sample.offset,
        num_keys=sample.num_keys,
        device=q.device,
    )


def packed_kernel_index(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    *,
    spec: NSASpec,
    frame_sizes: Tensor | Sequence[int] | None,
) -> StreamIndex:
    """The index of packed samples: q `[1, T, HQ, D]`, k `[1, S, H, D]`.

    Raises:
        ValueError: as `packed_samples` and `kernel_index`; the values of lengths that are on a GPU
            are looked at only where the blocks depend on them.
    """
    num_rows, num_keys, device = q.shape[1], k.shape[1], q.device
    size = spec.block_size
    from_shapes = size != "frame" and spec.selection_scope == "token"
    if from_shapes and cu_seqlens_k is not None and cu_seqlens_k.is_cuda:
        rows = cu_seqlens_k if cu_seqlens_q is None else cu_seqlens_q.to(device)
        check_cumulative(cu_seqlens_k, "cu_seqlens_k")
        check_cumulative(rows, "cu_seqlens_q")
        check_same_samples(rows, cu_seqlens_k)
        return packed_index(
            rows, cu_seqlens_k, num_rows=num_rows, num_keys=num_keys, block_size=int(size)
        )
    samples = packed_samples(cu_seqlens_q, cu_seqlens_k, num_rows=num_rows, num_keys=num_keys)
    borders = block_borders(spec.block_size, frame_sizes, [s.num_keys for s in samples])
    if spec.selection_scope == "block":
        for sample, offsets in zip(samples, borders, strict=True):
            check_on_borders(offsets, sample.offset, sample.num_rows)
    start = [s.first_key + x for s, b in zip(samples, borders, strict=True) for x in b[:-1]]
    sizes = [stop - x for b in borders for x, stop in pairwise(b)]
    counts = [len(b) - 1 for b in borders]

    def on_device(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)

    return stream_index(
        Samples(
            rows=on_device([0, *(s.first_row + s.num_rows for s in samples)]),
            first_key=on_device([s.first_key for s in samples]),
            first_position=on_device([s.offset for s in samples]),
            blocks=on_device([0, *accumulate(counts)]),
        ),
        on_device(start),
        on_device(sizes),
        num_rows=num_rows,
        max_blocks=max(counts),
        max_size=max(sizes),
        uniform=spec.block_size != "frame",
    )
