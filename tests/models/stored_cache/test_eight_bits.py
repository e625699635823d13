import torch

from videonsa.models.stored_cache.eight_bits import (
    channel_scales,
    from_levels,
    row_scales,
    to_levels,
)


def stored(sample):
    channels = channel_scales(sample)
    scales = row_scales(sample, channels)
    return from_levels(to_levels(sample, scales, channels), scales, channels)


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def keys(rows=2000):
    """`[S, 2, 64]`, normal."""
    return torch.randn(rows, 2, 64, generator=torch.Generator().manual_seed(0))


def test_ordinary_rows_are_wrong_by_less_than_a_hundredth():
    assert 0 < error(stored(keys()), keys()) < 0.01
    assert error(stored(keys() * 1e-6), keys() * 1e-6) < 0.01


def test_channels_that_are_always_large_leave_the_others_alone():
    """As the biases of k make them, turned by the positions."""
    sample, others = keys(), [i for i in range(64) if i not in (3, 35)]
    angles = torch.arange(len(sample))[:, None] * 0.01
    sample[..., 3] += 50 * angles.cos()
    sample[..., 35] += 50 * angles.sin()
    assert error(stored(sample)[..., others], sample[..., others]) < 0.01


def test_one_huge_row_leaves_the_others_alone_and_is_right_itself():
    sample = keys()
    sample[0, :, 7] *= 300
    found = stored(sample)
    assert error(found[1:], sample[1:]) < 0.03
    assert error(found[0], sample[0]) < 0.01


def test_rows_of_zeros_are_exact_and_none_at_all_is_none():
    sample = keys()
    sample[5] = 0
    assert (stored(sample)[5] == 0).all()
    assert (stored(torch.zeros(3, 2, 4)) == 0).all()
    assert stored(torch.empty(0, 2, 4)).shape == (0, 2, 4)


def test_what_is_not_finite_stays_so_and_harms_no_other_row():
    sample = keys()
    wanted = stored(sample)[2:]
    sample[0, 0, 5], sample[1, 1, 6] = float("nan"), float("inf")
    found = stored(sample)
    assert found[0, 0].isnan().any()
    assert not found[1, 1].isfinite().all()
    torch.testing.assert_close(found[2:], wanted, atol=0.05, rtol=0)
