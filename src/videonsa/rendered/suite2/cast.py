"""Who appears: no two objects that come by share a name, and no two that stand.

Only those that are counted together do. An object that comes by may have the name of another that
stands: questions tell them apart by what they do. Nothing has the name of an object that does both,
and distractors have names that nothing else has.
"""

import random
from collections.abc import Callable

from videonsa.rendered.clips.scene import PALETTE, SHAPES
from videonsa.rendered.suite2.acts import WHITE_SQUARE
from videonsa.rendered.suite2.plan2 import MOST_NAMES

NAMES2 = tuple(
    name for colour in PALETTE for shape in SHAPES if (name := f"{colour} {shape}") != WHITE_SQUARE
)
NUM_OTHERS = len(NAMES2) - MOST_NAMES
"""Names of distractors."""
NUM_UNLIKE = 2
"""Names that are left for objects in a group that are not alike."""


class Cast:
    """Gives out names at random."""

    def __init__(self, rng: random.Random, *, tallies: int) -> None:
        self._rng = rng
        colours = [colour for colour in PALETTE if colour not in WHITE_SQUARE]
        self.tallied = rng.sample(colours, tallies)
        """Colours of which nothing comes by but what is counted."""
        names = rng.sample(NAMES2, len(NAMES2))
        free = [name for name in names if name.split()[0] not in self.tallied]
        self.others = tuple(free[:NUM_OTHERS])
        """Of distractors."""
        self._crossing = free[NUM_OTHERS:]
        self._standing = [name for name in names if name not in self.others]
        rng.shuffle(self._standing)

    def comes_by(self) -> str:
        """The name of one more object that comes by."""
        return self._crossing.pop()

    def does_both(self) -> str:
        """The name of one more object that stands and comes by."""
        name = self.stands(lambda name: name in self._crossing)
        self._crossing.remove(name)
        return name

    def stands(self, fits: Callable[[str], bool] = lambda name: True) -> str:
        """The name of one more object that stands."""
        name = next(name for name in reversed(self._standing) if fits(name))
        self._standing.remove(name)
        return name

    def _offers(self, value: str, number: int) -> bool:
        have = sum(value in name.split() for name in self._standing)
        return have >= number and len(self._standing) - have >= NUM_UNLIKE

    def alike(self, number: int) -> tuple[str, list[str]]:
        """A colour or shape, and names of so many objects that stand and have it."""
        values = [*PALETTE, *SHAPES]
        self._rng.shuffle(values)
        value = next(value for value in values if self._offers(value, number))
        return value, [self.stands(lambda name: value in name.split()) for _ in range(number)]
