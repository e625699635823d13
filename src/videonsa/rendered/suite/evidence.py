"""What is seen at the times of the schedule, so that the answers drawn for a video are true."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from videonsa.rendered.clips.scene import DIRECTIONS, Sprite, draw_crossing
from videonsa.rendered.suite.suite_answers import SuiteAnswers, rng_of
from videonsa.rendered.suite.suite_spec import PLACES, SuiteSpec

MARK = "#"
FLASH_SCALE = 1.2
"""Radius of a flash, or of an object in a box, against that of other moving objects."""
BOX_SCALE = 1.35
"""Half the side of a box against the radius of the object in it."""
_GROUP_SCALE = 0.7
_DRIFT = 0.04  # share of the frame by which a group or a box moves while it is seen


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A line of text centred on (x, y) pixels, visible in [start, end) seconds."""

    text: str
    x: float
    y: float
    height: float
    """In font pixels of 1/112 of the frame's side."""
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What the questions are about, as it is seen; nothing here says which answer is right."""

    objects: tuple[Sprite, ...] = ()
    """They move."""
    flashes: tuple[Sprite, ...] = ()
    boxes: tuple[Sprite, ...] = ()
    """Objects in a white box."""
    numbers: tuple[Caption, ...] = ()
    """Marked by a # in front."""


class _Stage:
    """Places things of one kind in the frame, at the times of that kind."""

    def __init__(
        self, rng: random.Random, spec: SuiteSpec, answers: SuiteAnswers, starts: tuple[float, ...]
    ):
        self.rng, self.answers, self.starts = rng, answers, starts
        self.size, self.level = spec.frame_size, spec.level

    def radius(self, scale: float = 1.0) -> float:
        return self.rng.uniform(*self.level.radius) * scale * self.size

    def crossing(
        self, name: str, start: float, radius: float, direction: str | None = None
    ) -> Sprite:
        return draw_crossing(
            self.rng,
            name,
            radius=radius,
            direction=direction or self.rng.choice(list(DIRECTIONS)),
            start=start,
            end=start + PLACES["direction"][1],
            size=self.size,
        )

    def spot(self, margin: float) -> complex:
        """A place at least `margin` pixels from the edges, as x + iy."""
        low, high = margin, self.size - margin
        return complex(self.rng.uniform(low, high), self.rng.uniform(low, high))

    def drift(self) -> complex:
        """How far something that glides goes while it is seen."""
        return complex(*DIRECTIONS[self.rng.choice(list(DIRECTIONS))]) * _DRIFT * self.size

    def group(self, names: tuple[str, ...], places: Callable[[float], list[complex]]) -> Evidence:
        """Objects seen together that drift along: `places` draws them for a radius, as x + iy."""
        seconds = PLACES["relation"][1]
        step = self.drift()
        while True:
            radius = self.radius(_GROUP_SCALE)
            points = places(radius)
            ends = [point + step for point in points]
            if self._inside([*points, *ends], radius) and _apart(points, 2.2 * radius):
                break
        sprites = (
            _sprite(name, radius, p, start=self.starts[0], seconds=seconds, step=step)
            for name, p in zip(names, points, strict=True)
        )
        return Evidence(objects=tuple(sprites))

    def _inside(self, points: list[complex], radius: float) -> bool:
        low, high = radius + 1, self.size - radius - 1
        return all(low <= p.real <= high and low <= p.imag <= high for p in points)


def _sprite(
    name: str,
    radius: float,
    place: complex,
    *,
    start: float,
    seconds: float,
    step: complex = 0j,
) -> Sprite:
    """An object that goes one step while it is seen."""
    colour, shape = name.split()
    return Sprite(
        colour=colour,
        shape=shape,
        radius=radius,
        x=place.real,
        y=place.imag,
        vx=step.real / seconds,
        vy=step.imag / seconds,
        start=start,
        end=start + seconds,
    )


def _apart(points: list[complex], least: float) -> bool:
    return all(a is b or abs(a - b) >= least for a, b in product(points, points))


def _needle(stage: _Stage) -> Evidence:
    radius, seconds = stage.radius(FLASH_SCALE), PLACES["needle"][1]
    place = stage.spot(radius + 2)
    name = stage.answers.needle
    return Evidence(flashes=(_sprite(name, radius, place, start=stage.starts[0], seconds=seconds),))


def _number(stage: _Stage) -> Evidence:
    size, height = stage.size, stage.level.text
    text = MARK + stage.answers.number
    half_x, half_y = (length * height * size / 112 for length in (3.2 * len(text), 5.5))
    number = Caption(
        text=text,
        x=stage.rng.uniform(half_x, size - half_x),
        y=stage.rng.uniform(half_y, size - half_y),
        height=height,
        start=stage.starts[0],
        end=stage.starts[0] + PLACES["number"][1],
    )
    return Evidence(numbers=(number,))


def _needles(stage: _Stage) -> Evidence:
    seconds, boxes = PLACES["needles"][1], []
    for name, start in zip(stage.answers.boxed, stage.starts, strict=True):
        radius, step = stage.radius(FLASH_SCALE), stage.drift()
        place = stage.spot(BOX_SCALE * radius + abs(step) + 2)
        boxes.append(_sprite(name, radius, place, start=start, seconds=seconds, step=step))
    return Evidence(boxes=tuple(boxes))


def _order(stage: _Stage) -> Evidence:
    pairs = zip(stage.answers.order, stage.starts, strict=True)
    return Evidence(objects=tuple(stage.crossing(n, t, stage.radius()) for n, t in pairs))


def _count(stage: _Stage) -> Evidence:
    name = stage.answers.counted
    return Evidence(
        objects=tuple(stage.crossing(name, start, stage.radius()) for start in stage.starts)
    )


def _direction(stage: _Stage) -> Evidence:
    start, direction = stage.starts[0], stage.answers.direction
    return Evidence(
        objects=(stage.crossing(stage.answers.mover, start, stage.radius(), direction),)
    )


def _relation(stage: _Stage) -> Evidence:
    step = {"left": -1, "right": 1, "above": -1j, "below": 1j}[stage.answers.side]

    def places(radius: float) -> list[complex]:
        other = stage.spot(0)
        along = stage.rng.uniform(2.5 * radius, stage.size)
        across = stage.rng.uniform(-stage.level.tilt, stage.level.tilt) * along
        return [other + step * complex(along, across), other]

    return stage.group(stage.answers.related, places)


def _distance(stage: _Stage) -> Evidence:
    def places(radius: float) -> list[complex]:
        anchor = stage.spot(0)
        near = stage.rng.uniform(2.2 * radius, 0.5 * stage.size)
        far = near * stage.level.ratio * stage.rng.uniform(1.0, 1.2)
        turns = (stage.rng.uniform(0, 2 * math.pi) for _ in range(2))
        offsets = (
            length * complex(math.cos(turn), math.sin(turn))
            for length, turn in zip((near, far), turns, strict=True)
        )
        return [anchor, *(anchor + offset for offset in offsets)]

    return stage.group(stage.answers.distances, places)


def _compare(stage: _Stage) -> Evidence:
    middle, ratio = stage.radius(), math.sqrt(stage.level.ratio)
    radii = (middle * ratio, middle / ratio)
    pairs = zip(stage.starts, radii if stage.answers.larger_first else radii[::-1], strict=True)
    return Evidence(objects=tuple(stage.crossing(stage.answers.compared, t, r) for t, r in pairs))


_SHOWS: dict[str, Callable[[_Stage], Evidence]] = {
    "needle": _needle,
    "number": _number,
    "needles": _needles,
    "order": _order,
    "count": _count,
    "direction": _direction,
    "relation": _relation,
    "distance": _distance,
    "compare": _compare,
}


def show(
    seed: int, *, spec: SuiteSpec, answers: SuiteAnswers, times: dict[str, tuple[float, ...]]
) -> Evidence:
    """Everything the questions of a spec are about, at the given start times."""
    parts = [
        _SHOWS[kind](_Stage(rng_of(seed, kind, "place"), spec, answers, times[kind]))
        for kind in spec.kinds
    ]
    return Evidence(
        objects=tuple(sprite for part in parts for sprite in part.objects),
        flashes=tuple(sprite for part in parts for sprite in part.flashes),
        boxes=tuple(sprite for part in parts for sprite in part.boxes),
        numbers=tuple(caption for part in parts for caption in part.numbers),
    )
