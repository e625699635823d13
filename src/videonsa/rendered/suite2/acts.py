"""What is seen at one place of the time line, and where in the frame its things may stand."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from videonsa.rendered.clips.scene import DIRECTIONS, Sprite
from videonsa.rendered.suite.evidence import BOX_SCALE, Caption
from videonsa.rendered.suite2.spec2 import Suite2Spec

CELLS = 4
"""Rows and columns of merged tokens of a frame of 112 pixels; a sign stands in one of them."""
QUARTERS = {
    "top left": (0, 0),
    "top right": (1, 0),
    "bottom left": (0, 1),
    "bottom right": (1, 1),
}
WHITE_SQUARE = "white square"
"""What is carried; no object has this name."""


_T = TypeVar("_T", Sprite, Caption)


@dataclass(slots=True, eq=False)
class Act:
    """Things that are seen from one second on; their times count from there."""

    seconds: int
    objects: Sequence[Sprite] = ()
    flashes: Sequence[Sprite] = ()
    boxes: Sequence[Sprite] = ()
    signs: Sequence[Caption] = ()
    coming_by: bool = False
    """An object comes by: others may at the same time, where a video is crowded."""
    start: int = field(default=-1, init=False)
    """Set when it gets its place."""

    @property
    def span(self) -> tuple[float, float]:
        """Seconds [start, end) of the video in which it is seen."""
        things: list[Sprite | Caption] = [*self.objects, *self.flashes, *self.boxes, *self.signs]
        first, last = min(t.start for t in things), max(t.end for t in things)
        return self.start + first, self.start + last

    def placed(self) -> "Act":
        """The same with its things at their times in the video."""
        act = Act(
            self.seconds,
            [_later(sprite, self.start) for sprite in self.objects],
            [_later(sprite, self.start) for sprite in self.flashes],
            [_later(sprite, self.start) for sprite in self.boxes],
            [_later(caption, self.start) for caption in self.signs],
            self.coming_by,
        )
        act.start = self.start
        return act


def _later(thing: _T, seconds: float) -> _T:
    return replace(thing, start=thing.start + seconds, end=thing.end + seconds)


class Stage2:
    """Draws acts for a frame size and a difficulty."""

    def __init__(self, rng: random.Random, spec: Suite2Spec) -> None:
        self.rng, self.level, self.size = rng, spec.level2, spec.frame_size
        self.picture_seconds = min(self.level.picture, spec.seconds)

    @property
    def small(self) -> int:
        """Radius in whole pixels."""
        return self.pixels(self.level.radii[0])

    @property
    def middle(self) -> int:
        """Radius in whole pixels."""
        return self.pixels(self.level.radii[1])

    @property
    def large(self) -> int:
        """Radius in whole pixels."""
        return self.pixels(self.level.radii[2])

    def pixels(self, length: float) -> int:
        """Of a length in a frame of 112 pixels."""
        return round(length * self.size / 112)

    def crossing(self, name: str, direction: str, radius: int, margin: int | None = None) -> Sprite:
        """An object that crosses most of the frame; it keeps `margin` pixels from the edges."""
        step_x, step_y = DIRECTIONS[direction]
        margin = radius + 1 if margin is None else margin
        low, high = margin, self.size - 1 - margin
        travel = self.rng.randint(round(0.85 * (high - low)), high - low)
        along, across = self.rng.randint(low, high - travel), self.rng.randint(low, high)
        begin = along if step_x + step_y > 0 else along + travel
        x, y = (begin, across) if step_x else (across, begin)
        return self.sprite(name, radius, (x, y), (step_x * travel, step_y * travel))

    def sprite(
        self,
        name: str,
        radius: int,
        place: tuple[int, int],
        step: tuple[int, int] | None = None,
    ) -> Sprite:
        """An object that stands for as long as a picture, or goes a step as it comes by."""
        colour, shape = name.split()
        seconds = self.picture_seconds if step is None else self.level.crossing
        vx, vy = (0.0, 0.0) if step is None else (step[0] / seconds, step[1] / seconds)
        return Sprite(
            colour=colour,
            shape=shape,
            radius=float(radius),
            x=float(place[0]),
            y=float(place[1]),
            vx=vx,
            vy=vy,
            start=0.0,
            end=float(seconds),
        )

    def come_by(self, name: str, direction: str | None = None, radius: int | None = None) -> Act:
        """An object comes by, any way if none is told, of the middle size if none is told."""
        direction = direction or self.rng.choice(list(DIRECTIONS))
        sprite = self.crossing(name, direction, radius or self.middle)
        return Act(self.level.crossing, objects=(sprite,), coming_by=True)

    def box(self, name: str, direction: str) -> Act:
        """An object comes by in a white box."""
        margin = math.ceil(BOX_SCALE * self.middle) + 1
        sprite = self.crossing(name, direction, self.middle, margin)
        return Act(self.level.crossing, boxes=(sprite,))

    def picture(self, objects: Sequence[Sprite], signs: Sequence[Caption] = ()) -> Act:
        """Objects that stand, and signs."""
        return Act(self.picture_seconds, objects=objects, signs=signs)

    def signs(
        self, text: str, cell: tuple[int, int], seconds: float | None = None
    ) -> list[Caption]:
        """Characters side by side, each in the middle of a cell, from a column and row on."""
        side, (column, row) = self.size // CELLS, cell
        return [
            Caption(
                text=character,
                x=(column + place) * side + side / 2,
                y=row * side + side / 2,
                height=float(self.level.font),
                start=0.0,
                end=float(seconds or self.picture_seconds),
            )
            for place, character in enumerate(text)
        ]

    def cell_for(self, length: int, rows: Sequence[int]) -> tuple[int, int]:
        """Column and row from which on so many characters find room, in one of the rows."""
        return self.rng.randrange(CELLS - length + 1), self.rng.choice(rows)

    def in_quarter(self, name: str, radius: int, quarter: str) -> Sprite:
        """An object that stands anywhere in a quarter of the frame."""
        column, row = QUARTERS[quarter]
        half = self.size // 2
        x, y = (self.rng.randint(radius + 1, half - radius - 2) for _ in range(2))
        return self.sprite(name, radius, (x + column * half, y + row * half))

    def spot(self, margin: int) -> tuple[int, int]:
        """A place at least so many pixels from the edges."""
        low, high = margin, self.size - 1 - margin
        return self.rng.randint(low, high), self.rng.randint(low, high)
