"""Block borders, block tables, pooling and the index rules."""

import pytest
import torch

from videonsa.ops import masks
from videonsa.ops.reference import SCORES_PER_CHUNK, pool_blocks, rows_per_chunk
from videonsa.ops.varlen import block_borders, block_table

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("frame", "ends"),
    [
        (54, [54]),
        (128, [128]),
        (129, [65, 129]),
        (200, [100, 200]),
        (257, [86, 172, 257]),
        (385, [97, 193, 289, 385]),
    ],
)
def test_long_frames_are_cut_into_parts_larger_first(frame, ends):
    assert block_borders("frame", [frame], [frame]) == [[0, *ends]]


def test_fixed_blocks_reach_past_the_last_key():
    assert block_borders(4, None, [0, 4, 5]) == [[0], [0, 4], [0, 4, 8]]


def test_frames_after_the_last_key_are_left_out():
    assert block_borders("frame", [3, 3, 3], [4]) == [[0, 3, 6]]


def test_parts_of_an_arriving_frame_that_hold_no_key_are_no_blocks():
    assert block_borders("frame", [129, 10], [10, 10]) == [[0, 65], [0, 10]]
    assert block_borders("frame", [10**12], [130]) == [[0, 128, 256]]


def test_table_keeps_equal_borders_once():
    table = block_table([[0, 4, 8]] * 3, 6, device=CPU)
    assert table.offsets.tolist() == [[0, 4, 8]]
    assert (table.num_blocks, table.num_complete, table.max_size) == (2, 1, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("frames", [None, [64, 1, 60, 128, 54, 7, 86]])
def test_pooled_cache_extended_by_chunks_equals_a_recomputed_one_bitwise(frames, dtype):
    x = torch.randn(2, 400, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    block_size = "frame" if frames else 64

    def pooled(length):
        borders = block_borders(block_size, frames, [length])
        return pool_blocks(x[:, :length], block_table(borders, length, device=CPU))

    recomputed = pooled(400)
    assert recomputed.dtype == dtype
    for length in (63, 64, 65, 130, 254, 399):
        sofar = pooled(length)
        assert torch.equal(sofar, recomputed[:, : sofar.shape[1]])
    assert pooled(63).shape[1] == 0 and recomputed.shape[1] == (7 if frames else 6)


def test_pooled_block_is_the_mean_of_its_tokens():
    x = torch.randn(1, 23, 2, 3, dtype=torch.float64)
    borders = block_borders("frame", [5, 1, 9, 8], [23])
    pooled = pool_blocks(x, block_table(borders, 23, device=CPU))
    for block, (start, end) in enumerate([(0, 5), (5, 6), (6, 15), (15, 23)]):
        torch.testing.assert_close(pooled[:, block], x[:, start:end].mean(1))


def test_pooled_mean_is_rounded_once():
    x = torch.randn(1, 64, 2, 8).bfloat16()
    pooled = pool_blocks(x, block_table([[0, 64]], 64, device=CPU))
    assert torch.equal(pooled[:, 0], x.double().mean(1).bfloat16())


def test_block_that_is_incomplete_in_one_sample_pools_to_zero_there():
    x = torch.full((2, 6, 1, 2), 3.0)
    table = block_table([[0, 2, 8], [0, 3, 6]], 6, device=CPU)
    assert pool_blocks(x, table)[..., 0, 0].tolist() == [[3.0, 0.0], [3.0, 3.0]]


def test_window_holds_the_last_tokens_and_the_own():
    rows = keys = torch.arange(5)
    seen = masks.windowed(rows, keys, 2)
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_block_is_visible_from_its_last_position_on():
    seen = masks.visible(torch.tensor([[0, 2, 5]]), torch.arange(6))
    assert seen[0, :, 0].int().tolist() == [0, 1, 1, 1, 1, 1]
    assert seen[0, :, 1].int().tolist() == [0, 0, 0, 0, 1, 1]


def test_forced_blocks_lie_before_the_current_one():
    taken = masks.forced(torch.tensor([[0, 1, 4]]), 6, num_init=1, num_local=2)
    assert taken[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 1, 0],
    ]


def test_order_of_given_blocks_does_not_matter():
    assert masks.ascending(torch.tensor([3, -1, 1, 3, -7, 0])).tolist() == [0, 1, 3, -1, -1, -1]
    assert masks.membership(torch.tensor([2, -1, 2, 0]), 4).int().tolist() == [1, 0, 1, 0]


def test_chunk_of_16k_tokens_at_28_heads_stays_in_its_budget():
    q, k = torch.empty(1, 16384, 28, 128, device="meta"), torch.empty(1, 16384, 4, 128)
    rows = rows_per_chunk(q, k)
    assert rows >= 1 and rows * 28 * 16384 <= SCORES_PER_CHUNK
    assert SCORES_PER_CHUNK * 4 * 5 < 2 * 2**30  # five copies in float32 under 2 GB
