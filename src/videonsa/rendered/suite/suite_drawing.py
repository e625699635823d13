"""What the frames of a script show, as a drawing: made here, drawn wherever it is used."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from videonsa.ops.drawing import Drawing, Mask, Stamp
from videonsa.rendered.clips.clip_frames import coverage, edge_distance
from videonsa.rendered.clips.scene import PALETTE, SHAPES, Sprite
from videonsa.rendered.suite.evidence import BOX_SCALE, Caption
from videonsa.rendered.suite.font import text_mask
from videonsa.rendered.suite.script import SHOT, Script

_GREY = 40.0  # what faint colours fade to
_INK = 240.0
_REMEMBERED = 256  # masks

_T = TypeVar("_T", Sprite, Caption)
_Ints = NDArray[np.int32]


class _Moving(NamedTuple):
    """A stamp that is seen in [start, end) seconds, its middle at the nearest pixel to its path."""

    stamp: Stamp
    path: tuple[float, float, float, float, float, float]  # start, end, x, y, pixels a second

    @classmethod
    def of(cls, stamp: Stamp, thing: Sprite | Caption) -> Self:
        speed = (thing.vx, thing.vy) if isinstance(thing, Sprite) else (0.0, 0.0)
        return cls(stamp, (thing.start, thing.end, thing.x, thing.y, *speed))


def drawing_of(script: Script, first: int, last: int) -> Drawing:
    """What frames first to last - 1 show, at 2 a second, noise included."""
    frames = range(first, last)
    drawing = drawing_at(script, [frame / script.fps for frame in frames])
    return replace(drawing, noise=(script.noise,), shifts=script.noise_shifts(frames))


def drawing_at(script: Script, times: Sequence[float]) -> Drawing:
    """What is seen at ascending times in seconds, without noise."""
    moving = list(_seen(script, times[0], times[-1]))
    places, ends = _placed(moving, np.array(times))
    shots = {shot: script.background(shot * SHOT) for shot in {int(t // SHOT) for t in times}}
    return Drawing(
        size=script.spec.frame_size,
        background=np.array([shots[int(time // SHOT)] for time in times], np.float32),
        noise=(),
        noise_of=np.zeros(len(times), np.int32),
        shifts=np.zeros((len(times), 2), np.int32),
        stamps=tuple(stamp for stamp, _ in moving),
        places=places,
        ends=ends,
    )


def _placed(moving: Sequence[_Moving], times: NDArray[np.float64]) -> tuple[_Ints, _Ints]:
    """`places` and `ends` of a drawing."""
    paths = np.array([path for _, path in moving]).reshape(-1, 6)
    first, last = np.searchsorted(times, paths[:, 0]), np.searchsorted(times, paths[:, 1])
    number = last - first
    index = np.repeat(np.arange(len(moving)), number)
    frame = np.arange(len(index)) + np.repeat(last - number.cumsum(), number)
    start, _, x, y, speed_x, speed_y = paths[index].T
    age = times[frame] - start
    reach = np.array([stamp.mask.reach for stamp, _ in moving], np.int64).reshape(-1, 2)[index]
    top = np.floor(y + speed_y * age).astype(np.int64) - reach[:, 0]
    left = np.floor(x + speed_x * age).astype(np.int64) - reach[:, 1]
    order = np.argsort(frame, kind="stable")  # in a frame they stay in the order of `moving`
    ends = np.concatenate([[0], np.bincount(frame, minlength=len(times)).cumsum()])
    return np.stack([index, top, left], 1)[order].astype(np.int32), ends.astype(np.int32)


def _seen(script: Script, first: float, last: float) -> Iterator[_Moving]:
    """Everything seen in [first, last] seconds, in the order in which it is laid down."""
    size, strength = script.spec.frame_size, script.spec.level.strength
    shown = script.evidence
    for sprite in script.distractors(first, last):
        yield _sprite(sprite, size, strength)
    for caption in script.lines(first, last):
        yield _text(caption, size, strength)
    for sprite in _within((*shown.objects, *shown.flashes), first, last):
        yield _sprite(sprite, size, strength)
    for sprite in _within(shown.boxes, first, last):
        yield from _box(sprite, size, strength)
    for caption in _within(shown.numbers, first, last):
        yield _text(caption, size, strength)


def _within(things: Sequence[_T], first: float, last: float) -> list[_T]:
    return [thing for thing in things if thing.start <= last and thing.end > first]


@functools.lru_cache(maxsize=_REMEMBERED)
def _shape(shape: str, radius: float, rim: float, reach: int, *, boxed: bool) -> Mask:
    """A shape on (2 reach + 1)^2 pixels: with a thin black rim, or on black where it is boxed."""
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    index = torch.tensor(SHAPES.index(shape))
    distance = edge_distance(axis, axis[:, None], radius=radius, shape=index)
    inside = coverage(distance).numpy()
    keep = (1 - coverage(distance - rim).numpy()) * (1 - inside)
    keep = np.zeros_like(keep) if boxed else keep
    return Mask(name=(shape, radius, rim, reach, boxed), keep=keep, ink=inside)


def _square(side: int) -> Mask:
    one = np.ones((1, 1), np.float32)
    return Mask(name=("square", side), keep=0 * one, ink=one, scale=side)


@functools.lru_cache(maxsize=_REMEMBERED)
def _line(text: str, scale: int) -> Mask:
    """White letters on black."""
    ink = text_mask(text, scale=1)
    return Mask(name=(text, scale), keep=np.zeros_like(ink), ink=ink, scale=scale)


def _sprite(sprite: Sprite, size: int, strength: float) -> _Moving:
    reach = math.ceil(sprite.radius + size / 112) + 1
    mask = _shape(sprite.shape, sprite.radius, max(1.0, size / 112), reach, boxed=False)
    return _Moving.of(Stamp(mask, _faint(PALETTE[sprite.colour], strength)), sprite)


def _box(sprite: Sprite, size: int, strength: float) -> Iterator[_Moving]:
    """A white square, and on it a smaller black one with the object."""
    reach, edge = math.floor(BOX_SCALE * sprite.radius), max(1, size // 56)
    yield _Moving.of(Stamp(_square(2 * reach + 1), _white(strength)), sprite)
    mask = _shape(sprite.shape, sprite.radius, max(1.0, size / 112), reach - edge, boxed=True)
    yield _Moving.of(Stamp(mask, _faint(PALETTE[sprite.colour], strength)), sprite)


def _text(caption: Caption, size: int, strength: float) -> _Moving:
    mask = _line(caption.text, max(1, int(caption.height * size / 112)))
    return _Moving.of(Stamp(mask, _white(strength)), caption)


def _white(strength: float) -> tuple[float, float, float]:
    level = float(np.float32(_GREY + strength * (_INK - _GREY)))
    return level, level, level


def _faint(colour: tuple[int, int, int], strength: float) -> tuple[float, float, float]:
    faint = _GREY + np.float32(strength) * (np.array(colour, np.float32) - _GREY)
    red, green, blue = faint.tolist()
    return red, green, blue
