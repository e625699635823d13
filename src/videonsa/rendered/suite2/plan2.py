"""How much is shown for the kinds of a video: as many questions as its seconds and names allow.

What is shown comes in *shows*: a show serves one or more kinds and has one or more units. Every
show gets its least number of units, then all get one more in turn, until a video is full.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from videonsa.rendered.suite2.levels2 import STILL_KINDS, Level2

MOST_QUESTIONS = 36
"""Of a video of `FULL_SECONDS`; shorter ones have fewer, by the square root of their length, so
that those of one length hardly differ in it."""
FULL_SECONDS = 256
"""Longer videos show as much as one of these seconds."""
MOST_NAMES = 32
"""Of objects that come by, and as many that stand; the others are left for distractors."""
GAP = 1
"""Seconds without evidence behind each place, in all but the shortest videos."""
TIMES = 4
"""How often an object comes by that is counted, at most."""
DECOYS = 2
"""Objects that are seen with a digit like those that return, and do not return."""
SIGN = 2
"""Seconds that a sign is seen, at most."""


class Show(NamedTuple):
    """What a unit of a show costs and serves."""

    questions: dict[str, int]
    """Of each kind that it serves, per unit."""
    seconds: Callable[[Level2, int], int]
    """With the gaps, of a number of units."""
    crossing: Callable[[Level2, int], int] = lambda level, units: 0
    """Names of objects that come by, of a number of units."""
    standing: Callable[[Level2, int], int] = lambda level, units: 0
    """Names of objects that stand, of a number of units."""
    both: Callable[[Level2, int], int] = lambda level, units: 0
    """Names of objects that stand and come by."""
    most: int = 40
    """Units."""
    early: bool = False
    """Whether its names are taken before those of objects that stand and come by."""


def sign_seconds(level: Level2) -> int:
    """Seconds that a sign is seen."""
    return min(SIGN, level.picture)


def _pictures(number: int) -> Callable[[Level2, int], int]:
    return lambda level, units: number * units * (level.picture + GAP)


def _crossings(number: int) -> Callable[[Level2, int], int]:
    return lambda level, units: number * units * (level.crossing + GAP)


def _names(number: int) -> Callable[[Level2, int], int]:
    return lambda level, units: number * units


def _tally_seconds(level: Level2, units: int) -> int:
    return units * level.tally * (level.crossing + GAP)


def _flash_seconds(level: Level2, units: int) -> int:
    return units * (1 + GAP)


def _return_names(level: Level2, units: int) -> int:
    return units + DECOYS


def _return_seconds(level: Level2, units: int) -> int:
    return (units + DECOYS) * (level.picture + GAP) + units * (level.crossing + GAP)


def _counter_seconds(level: Level2, units: int) -> int:
    signs = level.signs + units - 1
    return (
        (level.picture + GAP) + signs * (sign_seconds(level) + GAP) + units * (level.crossing + GAP)
    )


def _carry_seconds(level: Level2, units: int) -> int:
    meetings = level.meetings + units - 1
    return level.picture + GAP + (meetings + units) * (level.crossing + GAP)


SHOWS = {
    "groups": Show({"howmany": 1}, _pictures(1), standing=_names(4), most=4, early=True),
    "flashes": Show({"needle": 1}, _flash_seconds, standing=_names(1), most=3, early=True),
    "returns": Show({"identity": 1}, _return_seconds, both=_return_names, most=4),
    "carriers": Show(
        {"carry": 1},
        _carry_seconds,
        crossing=_names(1),
        both=lambda level, units: level.carriers,
        most=6,
    ),
    "corners": Show({"place": 2, "larger": 1}, _pictures(1), standing=_names(3)),
    "sides": Show({"relation": 1}, _pictures(1), standing=_names(2)),
    "distances": Show({"distance": 1}, _pictures(1), standing=_names(3)),
    "plaques": Show({"number": 1}, _pictures(1), standing=_names(1)),
    "crossers": Show({"order": 1, "direction": 1}, _crossings(1), crossing=_names(1)),
    "counts": Show({"count": 1}, _crossings(TIMES), crossing=_names(1)),
    "sizes": Show({"compare": 1}, _crossings(2), crossing=_names(1)),
    "counter": Show({"state": 1}, _counter_seconds, crossing=_names(1), most=6),
    "tallies": Show({"tally": 1}, _tally_seconds, crossing=_names(4), most=4, early=True),
    "sets": Show({"scenes": 2}, _pictures(2), standing=_names(4), most=7),
}
"""In the order in which they are drawn."""
_EXTRA = {"order": -1, "state": 1, "carry": 1}
"""Questions beside those of the units: about the end; a pair has two objects."""


def shows_of(kinds: Sequence[str]) -> list[str]:
    """Names of the shows that these kinds need."""
    return [name for name, show in SHOWS.items() if {*show.questions} & {*kinds}]


def least_seconds(kinds: Sequence[str], *, level: Level2) -> int:
    """Of a video that asks these kinds; one picture alone takes one second."""
    shows = shows_of(kinds)
    if len(shows) == 1 and {*kinds} <= {*STILL_KINDS}:
        return 1
    return _total("seconds", {name: _least(name, kinds) for name in shows}, level)


def plan(kinds: Sequence[str], *, level: Level2, seconds: int) -> dict[str, int]:
    """Units of each show of a video of these kinds; it depends on no seed."""
    seconds = min(seconds, FULL_SECONDS)
    most = round(MOST_QUESTIONS * math.sqrt(seconds / FULL_SECONDS))
    units = {name: _least(name, kinds) for name in shows_of(kinds)}
    growing = list(units)
    while growing:
        for name in list(growing):
            more = units | {name: units[name] + 1}
            fits = (
                more[name] <= SHOWS[name].most
                and _total("seconds", more, level) <= seconds
                and _most_names(more, level) <= MOST_NAMES
                and num_questions(more, kinds) <= most
            )
            if fits:
                units = more
            else:
                growing.remove(name)
    return units


def num_questions(units: dict[str, int], kinds: Sequence[str]) -> int:
    """Of a plan, at most."""
    return sum(
        number * count + _EXTRA.get(kind, 0)
        for name, number in units.items()
        for kind, count in SHOWS[name].questions.items()
        if kind in kinds
    )


def _most_names(units: dict[str, int], level: Level2) -> int:
    """That have to be free at once: of objects that come by, that stand, and that may do both."""
    early = {name: number for name, number in units.items() if SHOWS[name].early}
    crossing, standing = (_total(cost, units, level) for cost in ("crossing", "standing"))
    taken = sum(_total(cost, early, level) for cost in ("crossing", "standing"))
    return _total("both", units, level) + max(crossing, standing, taken)


def _least(name: str, kinds: Sequence[str]) -> int:
    return 2 if name == "crossers" and "order" in kinds else 1


def _total(cost: str, units: dict[str, int], level: Level2) -> int:
    return sum(getattr(SHOWS[name], cost)(level, number) for name, number in units.items())
