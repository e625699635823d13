"""When the evidence of each question is shown: never two pieces at once."""

import math
from itertools import accumulate

from videonsa.rendered.clips.scene import SAMPLE_PERIOD
from videonsa.rendered.suite.suite_answers import SuiteAnswers, rng_of
from videonsa.rendered.suite.suite_spec import KINDS, PLACES, WINDOW, SuiteSpec, slot_of

MINUTE = 60


def stretch_of(spec: SuiteSpec) -> int:
    """Seconds at either end that `compare` is about: a minute, or a quarter of a short video."""
    return min(MINUTE, spec.seconds // 4)


def schedule(seed: int, *, spec: SuiteSpec, answers: SuiteAnswers) -> dict[str, tuple[float, ...]]:
    """Start times in seconds of the places of each asked kind, ascending.

    Each place stands at the position asked for its kind, or as near to it as the others allow. All
    begin with a pair of frames; the needle, one frame long, with either frame of it.
    """
    wishes = []  # (sort key, wished start, length with its gap, kind)
    for kind in KINDS:
        if kind in spec.kinds:
            wishes += _wishes(seed, kind, spec, answers)
    wishes.sort()
    starts = settle([w[1] for w in wishes], [w[2] for w in wishes], spec.seconds)
    times: dict[str, list[float]] = {kind: [] for kind in spec.kinds}
    for (*_, kind), start in zip(wishes, starts, strict=True):
        late = SAMPLE_PERIOD * (kind == "needle" and rng_of(seed, "frame").randrange(2))
        times[kind].append(start + late)
    return {kind: tuple(starts) for kind, starts in times.items()}


def _wishes(
    seed: int, kind: str, spec: SuiteSpec, answers: SuiteAnswers
) -> list[tuple[tuple[float, float], float, int, str]]:
    rng = rng_of(seed, kind, "times")
    drawn = rng.random()
    position = drawn if spec.position is None else spec.position
    tie = rng.random()  # kinds that want the same place get it in random order
    number, seconds = PLACES[kind]
    length = slot_of(kind)
    if kind == "compare":
        start = position * (stretch_of(spec) - seconds)
        last = spec.seconds - stretch_of(spec) + start
        # Before and after everything else: nothing can push them out of their minutes.
        return [((-math.inf, 0), start, length, kind), ((math.inf, 0), last, length, kind)]
    number = answers.count if kind == "count" else number
    offsets = sorted(rng.uniform(0, WINDOW * spec.seconds) for _ in range(number))
    span = offsets[-1] - offsets[0] + seconds
    begin = min(max(position * spec.seconds - span / 2, 0), spec.seconds - span)
    starts = [begin + offset - offsets[0] for offset in offsets]
    return [((start, tie), start, length, kind) for start in starts]


def settle(wishes: list[float], lengths: list[int], total: int) -> list[int]:
    """Whole-second starts in the given order, without overlap in [0, total), near the wishes.

    With the lengths before each start subtracted, starts only have to be non-decreasing: isotonic
    regression, by pooling adjacent violators.
    """
    before = [0, *accumulate(lengths)]
    pools: list[tuple[float, int]] = []  # sum and number of neighbours that share a value
    for wish, offset in zip(wishes, before, strict=False):
        pool = (wish - offset, 1)
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            last = pools.pop()
            pool = (pool[0] + last[0], pool[1] + last[1])
        pools.append(pool)
    values = [value / number for value, number in pools for _ in range(number)]
    room = total - before[-1]
    return [
        min(max(round(value), 0), room) + offset
        for value, offset in zip(values, before, strict=False)
    ]
