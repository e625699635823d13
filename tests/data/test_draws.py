from collections import Counter

import pytest

from videonsa.data.draws import Draws
from videonsa.data.sampler import PackSampler
from videonsa.errors import UsageError

SOURCES = ["a", "b", "c", "b"] * 4


def draws(**weights):
    return Draws(SOURCES, weights=weights, seed=2)


def test_a_source_is_seen_as_often_as_its_weight():
    seen = Counter(draws(a=2, b=0.5).of_epoch(0))
    assert all(seen[row] == 2 for row in range(0, 16, 4))
    assert all(seen[row] == 1 for row in range(2, 16, 4))
    assert sum(seen[row] for row in range(1, 16, 2)) == 4
    assert max(seen[row] for row in range(1, 16, 2)) == 1


def test_epochs_go_through_a_source_in_turn():
    one = draws(b=0.5, c=1.5)
    halves = [set(one.of_epoch(epoch)) for epoch in range(2)]
    assert halves[0] | halves[1] == set(range(16))
    both = Counter(one.of_epoch(0) + one.of_epoch(1))
    assert {both[row] for row in range(1, 16, 2)} == {1}
    assert {both[row] for row in range(2, 16, 4)} == {3}


def test_no_epoch_has_a_sample_more_often_than_at_most():
    one = draws(a=0.3, b=1.7)
    most = Counter(one.at_most)
    for epoch in range(5):
        assert Counter(one.of_epoch(epoch)) <= most


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"d": 1}, "data.weights has 'd': want .* a, b, c"), ({"a": 0}, r"data\.weights\.a=0: want")],
)
def test_weights_that_mean_nothing_are_refused(weights, message):
    with pytest.raises(UsageError, match=message):
        draws(**weights)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_sampler_draws_by_weight(batch_size):
    one = PackSampler(
        [10] * 16, max_tokens=40, seed=2, draws=draws(a=2, b=0.5), batch_size=batch_size
    )
    drawn = Counter(sample for pack in one for sample in pack.samples)
    assert drawn == Counter(draws(a=2, b=0.5).of_epoch(0))
    assert one.num_samples == drawn.total() == 16
    assert one.note.startswith("8 samples of a (which has 4), 4 samples of b (which has 8)")
    assert one.facts["by_source"] == {"a": 8, "b": 4, "c": 4}
    with pytest.raises(UsageError, match="has weights="):
        PackSampler([10] * 16, max_tokens=40, seed=2, draws=draws(a=2)).load_state_dict(
            one.state_dict() | {"batch_size": None}
        )
