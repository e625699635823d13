from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videonsa.errors import UsageError
from videonsa.parallel.shard import Piece, zigzag_shard


def shards(bounds, world_size):
    return [zigzag_shard(bounds, world_size=world_size, rank=r) for r in range(world_size)]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(lengths, st.integers(1, 5))
def test_every_row_has_one_process_and_sees_its_own_sample_up_to_itself(lengths, world_size):
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    if bounds[-1] < 2 * world_size:
        return
    found = shards(bounds, world_size)
    assert sorted(row for shard in found for row in shard.rows) == list(range(bounds[-1]))
    for shard in found:
        assert len(shard.rows) == shard.counts[shard.rank]
        rows = [row for piece in shard.pieces for row in range(piece.first, piece.end)]
        assert rows == shard.rows
        assert len(shard.keys) == sum(piece.num_keys for piece in shard.pieces)
        for piece in shard.pieces:
            begin, end = next(span for span in pairwise(bounds) if span[0] <= piece.first < span[1])
            assert piece.begin == begin and piece.first < piece.end <= end


@given(st.integers(1, 5), st.integers(10, 200))
def test_places_find_the_rows_of_all_processes_behind_one_another(world_size, num_rows):
    found = shards([0, num_rows], world_size)
    gathered = [row for shard in found for row in shard.rows]
    assert [gathered[place] for place in found[0].places] == list(range(num_rows))


def test_causal_work_over_one_sample_is_shared_out_evenly():
    work = [sum(row + 1 for row in shard.rows) for shard in shards([0, 8000], 4)]
    assert max(work) <= 1.001 * min(work)


def test_processes_take_stretches_from_both_ends():
    shard = zigzag_shard([0, 5, 16], world_size=2, rank=0)
    assert shard.runs == (((0, 4), (12, 16)), ((4, 8), (8, 12)))
    assert shard.pieces == (
        Piece(begin=0, first=0, end=4),
        Piece(begin=5, first=12, end=16),
    )
    assert shard.keys == [0, 1, 2, 3, *range(5, 16)]


@pytest.mark.parametrize("bounds", [[0], [1, 9], [0, 5, 5, 9], [0, 7]])
def test_what_cannot_be_cut_is_refused(bounds):
    with pytest.raises(UsageError):
        zigzag_shard(bounds, world_size=4, rank=0)
