import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videonsa.data.sampler import PackSampler
from videonsa.errors import UsageError

LENGTHS = [1 + (37 * i) % 40 for i in range(60)]


def sampler(**options):
    return PackSampler(LENGTHS, **{"max_tokens": 64, "seed": 3, "data_hash": "d"} | options)


def samples(packs):
    return [sample for pack in packs for sample in pack.samples]


def take(source, count):
    """The next packs, and the sampler advanced by them."""
    packs = []
    for _ in range(count):
        packs.append(next(iter(source)))
        source.advance()
    return packs


def test_an_epoch_holds_every_sample_once():
    packs = list(sampler())
    assert sorted(samples(packs)) == list(range(len(LENGTHS)))
    assert [pack.number for pack in packs] == list(range(len(packs)))
    assert len(sampler()) == len(packs)


def test_order_depends_on_seed_and_epoch_alone():
    assert list(sampler()) == list(sampler())
    assert list(sampler(seed=4)) != list(sampler())
    later = sampler()
    take(later, len(later))
    assert later.epoch == 1
    assert later.packs_done == 0
    assert [pack.samples for pack in later] != [pack.samples for pack in sampler()]
    assert sorted(samples(later)) == list(range(len(LENGTHS)))


def test_iterating_moves_nothing():
    one = sampler()
    first = list(one)
    assert list(one) == first
    assert one.samples_done() == []


def test_advancing_meanwhile_changes_no_pack_to_come():
    one = sampler()
    packs = []
    for pack in one:
        one.advance()
        packs.append(pack)
    assert packs == list(sampler())


@given(world_size=st.integers(1, 9))
@settings(max_examples=9, deadline=None)
def test_ranks_share_the_epoch_with_equally_many_packs(world_size):
    ranks = [list(sampler(rank=rank, world_size=world_size)) for rank in range(world_size)]
    steps = {len(packs) for packs in ranks}
    assert len(steps) == 1
    dealt = [packs[step] for step in range(*steps) for packs in ranks]
    alone = list(sampler())
    assert dealt[: len(alone)] == alone
    again = dealt[len(alone) :]
    assert len(again) < world_size
    assert [pack.samples for pack in again] == [pack.samples for pack in alone[: len(again)]]


@given(done=st.integers(0, 18), before=st.integers(1, 4), after=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_state_leaves_exactly_the_samples_that_are_not_done(done, before, after):
    first = sampler(world_size=before)
    for _ in range(done // before):
        first.advance()
    state = json.loads(json.dumps(first.state_dict()))
    ranks = [sampler(rank=rank, world_size=after) for rank in range(after)]
    for rank in ranks:
        rank.load_state_dict(state)
    left = [pack for packs in zip(*ranks, strict=True) for pack in packs]
    whole = list(sampler())
    place = done // before * before
    assert left[: len(whole) - place] == whole[place:]
    assert ranks[0].samples_done() == samples(whole[:place])
    assert ranks[0].samples_done() + samples(left[: len(whole) - place]) == samples(whole)


def test_a_state_at_the_end_of_an_epoch_begins_the_next():
    first = sampler()
    take(first, len(first))
    again = sampler()
    again.load_state_dict(first.state_dict())
    assert list(again) == list(first)
    assert again.epoch == 1


@pytest.mark.parametrize(
    ("other", "named"),
    [({"seed": 4}, "seed"), ({"max_tokens": 80}, "max_tokens"), ({"data_hash": "e"}, "data_hash")],
)
def test_a_state_of_another_run_is_refused(other, named):
    with pytest.raises(UsageError, match=f"has {named}="):
        sampler(**other).load_state_dict(sampler().state_dict())


def test_a_state_of_another_order_is_refused_and_changes_nothing():
    one = sampler()
    take(one, 3)
    state = PackSampler(LENGTHS[::-1], max_tokens=64, seed=3, data_hash="d").state_dict()
    before = list(one)
    with pytest.raises(UsageError, match="packs in another order"):
        one.load_state_dict(state)
    assert list(one) == before


def test_ranks_outside_the_world_and_empty_data_are_refused():
    with pytest.raises(UsageError, match="want 0 <= rank"):
        sampler(rank=2, world_size=2)
    with pytest.raises(UsageError, match="no sample"):
        PackSampler([], max_tokens=8)
