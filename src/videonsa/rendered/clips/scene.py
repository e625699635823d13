"""What happens in a rendered video: objects that appear, move and vanish, and one that flashes.

A scene is continuous in time, so that it can be sampled at any rate. All of it follows from its
seed; seeds of the train and test splits are disjoint by construction.
"""

import random
from dataclasses import dataclass
from typing import Literal

SIZE = 112
"""Pixels a side: 4 x 4 merged patches of 28 x 28."""
SAMPLE_PERIOD = 0.5
"""Seconds between frames sampled at 2 fps; a flash lasts exactly one."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (160, 50, 190),
    "white": (240, 240, 240),
}
PALETTE = COLOURS | {"orange": (240, 140, 40), "pink": (245, 150, 190), "cyan": (70, 210, 220)}
"""With those that only the second suite has."""
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MAX_OBJECTS = 3
OBJECT_RADIUS = (15.0, 19.0)
FLASH_RADIUS = (18.0, 24.0)
MIN_DURATION = 8.0
SPLIT_SIZE = 1 << 40
"""Seeds of the training split; those of the test split follow them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """One object: visible in [start, end) seconds, at (x, y) + (vx, vy) * (t - start) pixels."""

    colour: str
    shape: str
    radius: float
    x: float
    y: float
    vx: float
    vy: float
    start: float
    end: float

    @property
    def name(self) -> str:
        """Colour and shape, as questions and answers name it."""
        return f"{self.colour} {self.shape}"

    @property
    def direction(self) -> str:
        """The side it moves to."""
        sign = ((self.vx > 0) - (self.vx < 0), (self.vy > 0) - (self.vy < 0))
        return next(name for name, step in DIRECTIONS.items() if step == sign)

    def position(self, time: float) -> tuple[float, float]:
        """Centre in pixels at a time in seconds."""
        return self.x + self.vx * (time - self.start), self.y + self.vy * (time - self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A video as facts: moving objects (all names differ) and one flash of one sampled frame."""

    seed: int
    duration: float
    background: tuple[int, int, int]
    objects: tuple[Sprite, ...]
    flash: Sprite


def scene_seed(split: Literal["train", "test"], index: int) -> int:
    """Seed number `index` of a split; no seed belongs to both."""
    if not 0 <= index < SPLIT_SIZE:
        raise ValueError(f"index={index}: want 0 <= index < 2**40")
    return index + (SPLIT_SIZE if split == "test" else 0)


def make_scene(seed: int, *, duration: float = 48.0, num_objects: int | None = None) -> Scene:
    """Draw a scene of `duration` seconds with 1 to 3 moving objects, uniformly."""
    if duration < MIN_DURATION:
        raise ValueError(f"duration={duration}: want at least {MIN_DURATION} seconds")
    rng = random.Random(seed)
    count = num_objects or rng.randint(1, MAX_OBJECTS)
    colours = rng.sample(list(COLOURS), count + 1)
    shapes = rng.sample(SHAPES, count + 1)
    starts = _spread_starts(rng, count, duration)
    objects: list[Sprite] = []
    for colour, shape, start in zip(colours[1:], shapes[1:], starts, strict=True):
        candidates = (_draw_object(rng, colour, shape, start, duration) for _ in range(20))
        clear = (sprite for sprite in candidates if not _collides(sprite, objects))
        objects.append(next(clear, None) or _draw_object(rng, colour, shape, start, duration))
    return Scene(
        seed=seed,
        duration=duration,
        background=_draw_background(rng),
        objects=tuple(objects),
        flash=_draw_flash(rng, colours[0], shapes[0], duration),
    )


def make_still(seed: int) -> Scene:
    """Draw a scene of one second with 1 to 3 objects that stand still and do not touch."""
    rng = random.Random(seed)
    count = rng.randint(1, 3)
    names = zip(rng.sample(list(COLOURS), count), rng.sample(SHAPES, count), strict=True)
    cells = rng.sample([(0, 0), (0, 1), (1, 0), (1, 1)], count)
    objects = []
    for (colour, shape), (column, row) in zip(names, cells, strict=True):
        radius = rng.uniform(*OBJECT_RADIUS)
        low, high = radius, SIZE / 2 - radius
        x = rng.uniform(low, high) + column * SIZE / 2
        y = rng.uniform(low, high) + row * SIZE / 2
        objects.append(_still(colour, shape, radius, x, y, start=0.0, end=1.0))
    return Scene(
        seed=seed,
        duration=1.0,
        background=_draw_background(rng),
        objects=tuple(objects),
        flash=_still("red", "circle", 1.0, 0.0, 0.0, start=0.0, end=0.0),
    )


def _still(
    colour: str, shape: str, radius: float, x: float, y: float, *, start: float, end: float
) -> Sprite:
    return Sprite(
        colour=colour, shape=shape, radius=radius, x=x, y=y, vx=0.0, vy=0.0, start=start, end=end
    )


def _draw_background(rng: random.Random) -> tuple[int, int, int]:
    shade = rng.randint(10, 70)
    red, green, blue = (shade + rng.randint(-8, 8) for _ in range(3))
    return red, green, blue


def _spread_starts(rng: random.Random, count: int, duration: float) -> list[float]:
    """Appearance times in random order, at least 6 % of the duration apart, half of them from 0."""
    gap = 0.06 * duration
    slack = 0.6 * duration - gap * count
    offsets = sorted(rng.uniform(0, slack) for _ in range(count))
    starts = [gap * (i + 1) + offset for i, offset in enumerate(offsets)]
    if rng.random() < 0.5:
        starts[0] = 0.0
    rng.shuffle(starts)
    return starts


def _draw_object(
    rng: random.Random, colour: str, shape: str, start: float, duration: float
) -> Sprite:
    radius = rng.uniform(*OBJECT_RADIUS)
    life = rng.uniform(0.4, 0.9) * duration
    end = min(start + life, duration)
    direction = rng.choice(list(DIRECTIONS))
    return draw_crossing(
        rng, f"{colour} {shape}", radius=radius, direction=direction, start=start, end=end
    )


def draw_crossing(
    rng: random.Random,
    name: str,
    *,
    radius: float,
    direction: str,
    start: float,
    end: float,
    size: int = SIZE,
) -> Sprite:
    """Draw the path of an object that crosses most of a frame of `size` pixels in its time."""
    colour, shape = name.split()
    step_x, step_y = DIRECTIONS[direction]
    low, high = radius + 1, size - radius - 1
    travel = rng.uniform(0.85, 1.0) * (high - low)
    along = rng.uniform(low, high - travel)
    across = rng.uniform(low, high)
    begin = along if step_x + step_y > 0 else along + travel
    x, y = (begin, across) if step_x else (across, begin)
    speed = travel / (end - start)
    return Sprite(
        colour=colour,
        shape=shape,
        radius=radius,
        x=x,
        y=y,
        vx=step_x * speed,
        vy=step_y * speed,
        start=start,
        end=end,
    )


def _collides(sprite: Sprite, others: list[Sprite]) -> bool:
    """Whether two objects cover each other in more than a quarter of the time they share."""
    for other in others:
        first, last = max(sprite.start, other.start), min(sprite.end, other.end)
        if first >= last:
            continue
        hits = 0
        for i in range(8):
            time = first + (last - first) * (i + 0.5) / 8
            (ax, ay), (bx, by) = sprite.position(time), other.position(time)
            hits += (ax - bx) ** 2 + (ay - by) ** 2 < (0.8 * (sprite.radius + other.radius)) ** 2
        if hits > 2:
            return True
    return False


def _draw_flash(rng: random.Random, colour: str, shape: str, duration: float) -> Sprite:
    """Draw a still object of one sample period; clear of the borders between quarters."""
    quarter = rng.randrange(4)
    start = (quarter + rng.uniform(0.08, 0.92)) / 4 * duration
    start = min(start // SAMPLE_PERIOD * SAMPLE_PERIOD, duration - SAMPLE_PERIOD)
    radius = rng.uniform(*FLASH_RADIUS)
    x, y = (rng.uniform(radius, SIZE - radius) for _ in range(2))
    return _still(colour, shape, radius, x, y, start=start, end=start + SAMPLE_PERIOD)
