"""The answers of a video, chosen at random before anything is placed or rendered.

They follow from the seed alone: the same seed has the same answers at every length, difficulty
and position, and whichever kinds are asked.
"""

import random
from dataclasses import dataclass

from videonsa.rendered.clips.clip_questions import NAMES
from videonsa.rendered.clips.scene import DIRECTIONS
from videonsa.rendered.suite.suite_spec import PLACES

SIDES = ("left", "right", "above", "below")
ORDINALS = ("first", "second", "third")
COUNTS = tuple(str(count) for count in range(1, PLACES["count"][0] + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteAnswers:
    """What will be true of the video. No name has two roles."""

    needle: str
    number: str
    numbers: tuple[str, ...]
    """The options for the number; all but the right one are shown as decoys."""
    boxed: tuple[str, ...]
    """In the order in which they are seen."""
    box: int
    """Which of them is asked for, from 0."""
    order: tuple[str, str]
    """First and second to appear."""
    counted: str
    count: int
    mover: str
    direction: str
    related: tuple[str, str]
    side: str
    """Side of the second on which the first stands."""
    distances: tuple[str, str, str]
    """One object, the one near it and the one farther away."""
    compared: str
    larger_first: bool
    others: tuple[str, ...]
    """Names of the objects that no question is about."""


def rng_of(seed: int, *use: object) -> random.Random:
    """Random numbers for one use, independent of those for every other."""
    return random.Random("/".join(("suite", str(seed), *map(str, use))))


def draw_answers(seed: int) -> SuiteAnswers:
    """Draw answers uniformly, and names in one shuffle, so that no name gives away another."""
    names = rng_of(seed, "names").sample(NAMES, len(NAMES))
    numbers = [str(number) for number in rng_of(seed, "numbers").sample(range(1000, 10000), 10)]
    return SuiteAnswers(
        needle=names[0],
        number=rng_of(seed, "number").choice(numbers),
        numbers=tuple(numbers),
        boxed=(names[1], names[2], names[3]),
        box=rng_of(seed, "needles").randrange(len(ORDINALS)),
        order=(names[4], names[5]),
        counted=names[6],
        count=rng_of(seed, "count").randint(1, len(COUNTS)),
        mover=names[7],
        direction=rng_of(seed, "direction").choice(list(DIRECTIONS)),
        related=(names[8], names[9]),
        side=rng_of(seed, "relation").choice(SIDES),
        distances=(names[10], names[11], names[12]),
        compared=names[13],
        larger_first=rng_of(seed, "compare").random() < 0.5,
        others=tuple(names[14:]),
    )
