import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videonsa.data.packing import WINDOW, pack_samples
from videonsa.errors import UsageError

LENGTHS = st.lists(st.integers(1, 100), max_size=300)


@given(lengths=LENGTHS, seed=st.integers(0, 5), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_sample_is_in_one_pack_and_no_pack_is_too_long(lengths, seed, epoch):
    packing = pack_samples(lengths, max_tokens=100, seed=seed, epoch=epoch)
    assert sorted(i for pack in packing.packs for i in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in pack) <= 100 for pack in packing.packs)
    assert packing == pack_samples(lengths, max_tokens=100, seed=seed, epoch=epoch)


@given(lengths=LENGTHS.filter(len))
@settings(max_examples=60, deadline=None)
def test_fill_is_the_share_of_room_that_holds_tokens(lengths):
    packing = pack_samples(lengths, max_tokens=100, seed=0)
    assert packing.fill == pytest.approx(sum(lengths) / (100 * len(packing.packs)))
    # Two packs of one window that are half empty would have been one.
    windows = -(-sum(lengths) // (WINDOW * 100 - 99))
    assert len(packing.packs) <= 2 * sum(lengths) / 100 + windows


def test_no_sample_is_no_pack():
    assert pack_samples([], max_tokens=8, seed=0) == ((), 0, 8, 0)
    assert pack_samples([], max_tokens=8, seed=0).fill == 1


def some_lengths(count, most):
    return [1 + (7919 * i * i + 31 * i) % most for i in range(count)]


@pytest.mark.parametrize(("most", "least_fill"), [(50, 0.99), (1000, 0.97), (4000, 0.94)])
def test_packs_are_nearly_full(most, least_fill):
    packing = pack_samples(some_lengths(20_000, most), max_tokens=4096, seed=1)
    assert packing.fill > least_fill


def test_seed_and_epoch_change_the_packs():
    lengths = some_lengths(500, 60)
    by_seed = {pack_samples(lengths, max_tokens=100, seed=seed).packs for seed in range(3)}
    by_epoch = {
        pack_samples(lengths, max_tokens=100, seed=0, epoch=epoch).packs for epoch in range(3)
    }
    assert len(by_seed | by_epoch) == 5


def test_long_and_short_samples_come_all_along():
    lengths = some_lengths(20_000, 60)
    packs = pack_samples(lengths, max_tokens=100, seed=0).packs
    sizes = [len(pack) for pack in packs]
    overall = sum(sizes) / len(sizes)
    for start in range(0, len(sizes) - 500, 500):
        assert sum(sizes[start : start + 500]) / 500 == pytest.approx(overall, rel=0.1)


def test_the_order_is_pinned():
    lengths = [3, 9, 4, 4, 2, 7, 5, 1]
    assert pack_samples(lengths, max_tokens=10, seed=7).packs == ((3, 4), (1, 7), (5, 0), (6, 2))


@pytest.mark.parametrize("lengths", [[3, 11, 12], [3, 0]])
def test_samples_that_do_not_fit_are_refused(lengths):
    with pytest.raises(UsageError, match="samples do not fit into packs of 10 tokens, such as"):
        pack_samples(lengths, max_tokens=10, seed=0)
