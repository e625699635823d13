"""The index of the stream: three ways to the same tables, and rows cut into tiles."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Case, assert_close_to_reference, cumulative, make_inputs, run_kernels

from videonsa.ops import NSASpec
from videonsa.ops.triton.index import (
    FAR,
    StreamIndex,
    batch_index,
    packed_index,
    packed_kernel_index,
    row_tiles,
    uniform_index,
)
from videonsa.ops.varlen import block_borders, block_table

CPU = torch.device("cpu")


def assert_same_index(found, wanted, num_blocks=None):
    """Equal tables; of the blocks only the first `num_blocks`."""
    for name, ours, theirs in zip(StreamIndex._fields, found, wanted, strict=True):
        if isinstance(ours, torch.Tensor):
            assert ours.dtype == torch.int32, name
            blocks = slice(num_blocks if name in ("block_start", "block_size") else None)
            assert torch.equal(ours[blocks], theirs[blocks]), name


@pytest.mark.parametrize(("num_rows", "num_keys"), [(1, 1), (5, 5), (37, 37), (9, 75), (64, 64)])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_uniform_index_equals_that_of_explicit_borders(num_samples, num_rows, num_keys):
    common = {
        "num_samples": num_samples,
        "num_rows": num_rows,
        "first_row": num_keys - num_rows,
        "num_keys": num_keys,
    }
    table = block_table(block_borders(16, None, [num_keys]), num_keys, device=CPU)
    explicit = batch_index(table.offsets, **common, max_size=16, uniform=True)
    assert_same_index(uniform_index(16, **common, device=CPU), explicit)


@pytest.mark.parametrize(("num_rows", "num_keys"), [(5, 5), (37, 37), (9, 75), (64, 64)])
def test_packed_index_of_equal_samples_equals_the_uniform_one(num_rows, num_keys):
    rows, keys = (cumulative([n] * 3, CPU) for n in (num_rows, num_keys))
    packed = packed_index(rows, keys, num_rows=3 * num_rows, num_keys=3 * num_keys, block_size=16)
    uniform = uniform_index(
        16,
        num_samples=3,
        num_rows=num_rows,
        first_row=num_keys - num_rows,
        num_keys=num_keys,
        device=CPU,
    )
    num_blocks = len(uniform.block_start)
    assert_same_index(packed, uniform, num_blocks)
    assert packed.max_blocks >= uniform.max_blocks
    assert (packed.block_start[num_blocks:] == FAR).all()
    assert (packed.block_size[num_blocks:] == 0).all()


def test_packed_index_places_every_row_in_its_own_sample():
    q_lengths, k_lengths, size = [5, 0, 20, 3], [30, 16, 20, 33], 8
    index = packed_index(
        cumulative(q_lengths, CPU),
        cumulative(k_lengths, CPU),
        num_rows=28,
        num_keys=99,
        block_size=size,
    )
    row, first_key, first_block = 0, 0, 0
    for num_rows, num_keys in zip(q_lengths, k_lengths, strict=True):
        for position in range(num_keys - num_rows, num_keys):
            assert index.row_key[row] == first_key + position
            assert index.row_begin[row] == first_block
            assert index.row_block[row] == first_block + position // size
            assert index.row_end[row] == first_block + (position + 1) // size
            row += 1
        for c in range(-(-num_keys // size)):
            assert index.block_start[first_block + c] == first_key + c * size
        first_key += num_keys
        first_block += -(-num_keys // size)
    assert index.max_blocks >= max(-(-n // size) for n in k_lengths)


@pytest.mark.parametrize("lengths", [(1,), (37,), (20, 0, 37, 1), (0, 0, 5), (32, 32), (8, 9)])
@pytest.mark.parametrize("size", [8, 32])
def test_tiles_hold_every_row_once_and_cross_no_sample(lengths, size):
    cu = cumulative(lengths, CPU)
    index = packed_index(cu, cu, num_rows=sum(lengths), num_keys=sum(lengths), block_size=16)
    tiles = row_tiles(index, size)
    assert tiles.table.shape == (tiles.num, 2)
    runs = [(first, first + rows) for first, rows in tiles.table.tolist() if rows]
    assert [row for run in runs for row in range(*run)] == list(range(sum(lengths)))
    samples = [range(*bounds) for bounds in pairwise(cu.tolist())]
    for start, stop in runs:
        assert stop - start <= size
        assert any(start in sample and stop - 1 in sample for sample in samples)


@pytest.mark.parametrize("size", [8, 16])
def test_aligned_tiles_also_end_with_the_blocks(size):
    borders = block_borders("frame", [54, 7, 32, 60], [140])
    index = batch_index(
        block_table(borders, 140, device=CPU).offsets,
        num_samples=1,
        num_rows=120,
        first_row=20,
        num_keys=140,
        max_size=60,
        uniform=False,
    )
    table = row_tiles(index, size, aligned=True).table.tolist()
    assert [row for first, rows in table for row in range(first, first + rows)] == list(range(120))
    for first, rows in table:
        if rows:
            assert rows <= size
            assert index.row_block[first] == index.row_block[first + rows - 1]


@pytest.mark.parametrize("num_rows", [1, 8, 37])
def test_samples_of_equal_length_need_no_table(num_rows):
    index = uniform_index(
        16, num_samples=3, num_rows=num_rows, first_row=0, num_keys=num_rows, device=CPU
    )
    tiles = row_tiles(index, 8)
    assert tiles.table is None
    assert (tiles.num, tiles.rows_of_sample) == (3 * -(-num_rows // 8), num_rows)


SAMPLES = st.lists(
    st.tuples(st.lists(st.integers(1, 300), max_size=4), st.integers(1, 400), st.integers(1, 300)),
    min_size=1,
    max_size=4,
)
"""Whole frames of each sample, tokens of its arriving frame, and how many of these are there."""


def arriving(samples):
    """Keys of each sample, and the sizes of all frames."""
    there = [(whole, last, min(last, some)) for whole, last, some in samples]
    lengths = [sum(whole) + some for whole, _, some in there]
    return lengths, [size for whole, last, _ in there for size in (*whole, last)]


@given(SAMPLES)
def test_starts_of_packed_blocks_ascend_whatever_frame_is_arriving(samples):
    lengths, frames = arriving(samples)
    total, spec = sum(lengths), NSASpec(block_size="frame")
    q = torch.empty(1, total, 1, 16)
    cu = cumulative(lengths, CPU)
    index = packed_kernel_index(q, q, None, cu, spec=spec, frame_sizes=frames)
    assert (index.block_start.diff() > 0).all()
    sample = torch.searchsorted(cu, torch.arange(total), right=True)
    begin, block = index.row_begin.long(), index.row_block.long()
    assert torch.equal(index.block_start[begin], cu[sample - 1])
    start, size = index.block_start[block], index.block_size[block]
    assert ((start <= index.row_key) & (index.row_key < start + size)).all()


@pytest.mark.parametrize(
    "samples",
    [
        [([], 129, 10), ([], 10, 10)],
        [([7], 300, 3), ([], 400, 140), ([12], 9, 4)],
        [([], 257, 87), ([], 130, 1), ([], 128, 20)],
    ],
    ids=str,
)
def test_kernels_equal_the_reference_where_packed_samples_end_in_an_arriving_frame(samples, device):
    lengths, frames = arriving(samples)
    case = Case(k_lengths=tuple(lengths), frames=tuple(frames), s="frame", n=2, group=1)
    inputs = make_inputs(case, device)
    found = run_kernels(case, inputs)
    wanted = run_kernels(case, inputs, backend="reference")
    assert torch.equal(found.selected_blocks, wanted.selected_blocks)
    assert_close_to_reference(case, inputs, found)
