"""Means over videos, and how sure they are."""

import pytest

from videonsa.evals.intervals import Interval, mean_over_videos


def test_the_mean_is_over_samples_and_the_interval_over_videos():
    found = mean_over_videos([10, 0], [10, 90])
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == (0.0, 1.0)  # either video may be drawn twice


def test_many_videos_give_the_interval_of_the_normal_approximation():
    found = mean_over_videos([0, 1] * 200, [1] * 400)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.01)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.01)


def test_videos_that_are_all_alike_say_how_often_another_may_come():
    found = mean_over_videos([4] * 10, [4] * 10, bounds=(0, 1))
    assert found == Interval(1.0, pytest.approx(0.05**0.1), 1.0)
    assert mean_over_videos([4] * 10, [4] * 10) == Interval(1.0)


def test_one_video_has_no_interval_and_excludes_nothing():
    found = mean_over_videos([3, 0], [4, 0], bounds=(0, 1))
    assert found == Interval(0.75)
    assert not found.excludes(0)
