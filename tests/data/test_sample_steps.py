import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videonsa.data.sampler import PackSampler
from videonsa.data.steps import pack_steps, plan_steps
from videonsa.errors import UsageError

LIMIT = 100


def sampler(lengths, **options):
    options = {"max_tokens": LIMIT, "seed": 3, "batch_size": 8} | options
    return PackSampler(lengths, **options)


@given(
    lengths=st.lists(st.integers(1, LIMIT), min_size=1, max_size=90),
    ranks=st.sampled_from([1, 2, 4]),
    epoch=st.integers(0, 2),
)
@settings(max_examples=80, deadline=None)
def test_every_step_has_as_many_samples_and_packs_that_fit(lengths, ranks, epoch):
    everything = range(len(lengths))
    count = len(lengths)
    plan = plan_steps(
        *(lengths,), drawn=everything, num_drawn=count, batch_size=8, max_tokens=LIMIT, ranks=ranks
    )
    assert plan.samples <= 8 and plan.samples % ranks == plan.packs % ranks == 0
    packing = pack_steps(lengths, plan, drawn=everything, max_tokens=LIMIT, seed=1, epoch=epoch)
    packs = packing.packs
    assert all(0 < sum(lengths[i] for i in pack) <= LIMIT for pack in packs)
    steps = [packs[i : i + plan.packs] for i in range(0, len(packs), plan.packs)]
    assert {sum(map(len, step)) for step in steps} == {plan.samples}
    assert len(steps) == -(-len(lengths) // 8)
    assert {i for pack in packs for i in pack} == set(everything)
    assert packing.num_repeated == sum(map(len, packs)) - len(lengths) < len(steps) * ranks + 8


def test_the_steps_of_an_epoch_are_those_of_the_paper():
    """216K samples of 11K to 18K tokens, 32 a step, sequences of 36K."""
    rng = random.Random(0)
    lengths = [rng.randrange(11_000, 18_400) for _ in range(2160)]
    for ranks in (1, 8, 16):
        one = sampler(lengths, batch_size=32, max_tokens=36_864, world_size=ranks)
        assert one.step.samples == 32
        assert one.step.packs == 16
        assert len(one) * ranks == 16 * 68  # 67.5 steps
        assert "68 steps of 32 samples in 16 sequences, filled with 16 samples" in one.note


def test_little_data_makes_steps_of_fewer_samples():
    one = sampler([10] * 3, batch_size=32)
    assert (one.step.samples, one.step.packs, len(one)) == (3, 1, 1)
    assert sampler([10] * 40, batch_size=32).step.samples == 20
    assert sampler([10], batch_size=4, world_size=2).step.samples == 2


def test_a_state_goes_on_with_another_number_of_ranks_and_of_packs():
    lengths = [10 + 7 * i % 20 for i in range(50)]
    one, two = sampler(lengths), sampler(lengths, world_size=4)
    assert one.step.packs % 4 and one.step.samples == two.step.samples == 8
    for _ in range(2 * one.step.packs):
        one.advance()
    two.load_state_dict(one.state_dict())
    assert two.packs_done == 2 * two.step.packs
    assert sorted(two.samples_done()) == sorted(one.samples_done())
    one.advance()
    with pytest.raises(UsageError, match="within a step"):
        two.load_state_dict(one.state_dict())


def test_a_state_of_steps_of_another_number_of_samples_says_so():
    one, two = sampler([10] * 9), sampler([10] * 9, world_size=2)
    assert (one.step.samples, two.step.samples) == (5, 6)
    with pytest.raises(UsageError, match="of steps of 5 samples, over 2 ranks they have 6: want"):
        two.load_state_dict(one.state_dict())


def test_samples_that_fit_no_sequence_are_refused():
    with pytest.raises(UsageError, match="do not fit into packs of 100"):
        sampler([10, 101])
