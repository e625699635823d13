"""Means over videos with 95 % intervals, by the cluster bootstrap: a video stays whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

REPEATS = 2000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval; no ends where they cannot be told."""

    value: float
    low: float | None = None
    high: float | None = None

    def excludes(self, value: float) -> bool:
        """Whether the interval is known and does not hold a value."""
        if self.low is None or self.high is None:
            return False
        return not self.low <= value <= self.high


def mean_over_videos(
    sums: Sequence[float],
    counts: Sequence[float],
    *,
    bounds: tuple[float, float] | None = None,
    repeats: int = REPEATS,
) -> Interval:
    """The mean over all samples of all videos; videos are drawn with replacement, always the same.

    For a paired difference, give the difference of the sums of each video.

    Where all videos have the same mean, the bootstrap has nothing to spread. Then a video that is
    unlike them may still come with a probability of up to 1 - 0.05^(1/n) (Clopper and Pearson, of 0
    in n), which moves the mean by as much of the way to the farther of `bounds` at most.

    Args:
        sums: of each video, over its samples.
        counts: of each video, how many samples; at least one is positive.
        bounds: between which samples lie, for the case above; None: there is then no interval.
        repeats: of the bootstrap.
    """
    total, count = np.asarray(sums, float), np.asarray(counts, float)
    total, count = total[count > 0], count[count > 0]
    value, num_videos = float(total.sum() / count.sum()), len(count)
    if num_videos < 2:
        return Interval(value)
    if np.ptp(total / count) < 1e-12:
        if bounds is None:
            return Interval(value)
        farthest = max(value - bounds[0], bounds[1] - value)
        reach = (1 - (1 - _LEVEL) ** (1 / num_videos)) * farthest
        return Interval(value, max(bounds[0], value - reach), min(bounds[1], value + reach))
    drawn = np.random.default_rng(0).integers(num_videos, size=(repeats, num_videos))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))
