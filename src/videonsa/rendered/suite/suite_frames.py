"""Renders any stretch of a script, frame by frame, drawing each object only where it is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from videonsa.errors import UsageError
from videonsa.rendered.clips.clip_frames import NOISE_LEVELS, coverage, edge_distance, encode_h264
from videonsa.rendered.clips.scene import COLOURS, SHAPES, Sprite
from videonsa.rendered.suite.evidence import BOX_SCALE, Caption
from videonsa.rendered.suite.font import text_mask
from videonsa.rendered.suite.script import SHOT, Script
from videonsa.rendered.suite.suite_answers import rng_of

_CHUNK = 64
_GREY = 40.0  # what faint colours fade to
_INK = 240.0
_SHIFTS = 32  # a frame's noise is one of _SHIFTS^2 cuts of the video's

_Floats = NDArray[np.float32]
_T = TypeVar("_T", Sprite, Caption)


def render_frames(
    script: Script, first: int, last: int, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Frames first to last - 1, at 2 a second: uint8 [last - first, 3, S, S].

    A frame's bytes are the same however the video is cut. Drawn on the CPU, then moved.
    """
    if not 0 <= first < last <= script.num_frames:
        raise UsageError(
            f"first={first}, last={last}: want 0 <= first < last <= {script.num_frames}"
        )
    noise = _noise_of(script)
    size = script.spec.frame_size
    frames = np.empty((last - first, 3, size, size), np.uint8)
    for begin in range(first, last, _CHUNK):
        part = range(begin, min(begin + _CHUNK, last))
        images = _draw(script, [frame / script.fps for frame in part])
        for frame, image in zip(part, images, strict=True):
            rng = rng_of(script.seed, "noise", frame)
            top, left = rng.randrange(_SHIFTS), rng.randrange(_SHIFTS)
            image += noise[:, top : top + size, left : left + size]
            frames[frame - first] = _rounded(image)
    return torch.from_numpy(frames).to(device)


def iter_frames(script: Script, *, chunk: int = 64) -> Iterator[torch.Tensor]:
    """All frames in order, `chunk` at a time: uint8 [<= chunk, 3, S, S]."""
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: want at least 1 frame")
    for first in range(0, script.num_frames, chunk):
        yield render_frames(script, first, min(first + chunk, script.num_frames))


def write_suite_video(script: Script, path: Path, *, fps: int = 8) -> None:
    """Encode as H.264 at `fps` frames a second, without noise, a stretch of frames at a time.

    Written atomically: no file on failure.
    """
    length = int(script.duration * fps)
    stretches = (range(i, min(i + _CHUNK, length)) for i in range(0, length, _CHUNK))
    images = (
        torch.from_numpy(
            np.stack([_rounded(image) for image in _draw(script, [i / fps for i in part])])
        )
        for part in stretches
    )
    encode_h264(images, path, size=script.spec.frame_size, fps=fps)


@dataclass(slots=True)
class _Stamp:
    """A picture to lay over the frame: image * keep + ink."""

    keep: _Floats  # [h, w]
    ink: _Floats  # [3, h, w]
    start: float
    end: float
    path: tuple[float, float, float, float]  # x, y at the start; pixels a second
    _reach: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._reach = self.keep.shape[0] // 2, self.keep.shape[1] // 2

    def lay(self, image: _Floats, time: float) -> None:
        """Draw it at its place at a time, to the nearest pixel, cut at the edges."""
        if not self.start <= time < self.end:
            return
        x, y, vx, vy = self.path
        age = time - self.start
        top = math.floor(y + vy * age) - self._reach[0]
        left = math.floor(x + vx * age) - self._reach[1]
        (height, width), size = self.keep.shape, image.shape[-1]
        rows = slice(max(0, -top), min(height, size - top))
        columns = slice(max(0, -left), min(width, size - left))
        patch = image[
            :, top + rows.start : top + rows.stop, left + columns.start : left + columns.stop
        ]
        patch *= self.keep[rows, columns]
        patch += self.ink[:, rows, columns]


def _draw(script: Script, times: Sequence[float]) -> Iterator[_Floats]:
    """Images without noise at ascending times: float32 [3, S, S], one buffer reused."""
    size = script.spec.frame_size
    stamps = _stamps(script, times[0], times[-1])
    shade = np.linspace(0.8, 1.2, size, dtype=np.float32)[:, None]
    image = np.empty((3, size, size), np.float32)
    empty: dict[int, _Floats] = {}  # of each shot
    for time in times:
        shot = int(time // SHOT)
        if shot not in empty:
            empty[shot] = np.array(script.background(time), np.float32)[:, None, None] * shade
        image[:] = empty[shot]
        for stamp in stamps:
            stamp.lay(image, time)
        yield image


def _stamps(script: Script, first: float, last: float) -> list[_Stamp]:
    """Everything seen in [first, last] seconds, in the order in which it is laid down."""
    size, strength = script.spec.frame_size, script.spec.level.strength
    shown = script.evidence
    sprites = _within((*shown.objects, *shown.flashes), first, last)
    return [
        *(_sprite_stamp(s, size, strength) for s in script.distractors(first, last)),
        *(_text_stamp(c, size, strength) for c in script.lines(first, last)),
        *(_sprite_stamp(s, size, strength) for s in sprites),
        *(_box_stamp(s, size, strength) for s in _within(shown.boxes, first, last)),
        *(_text_stamp(c, size, strength) for c in _within(shown.numbers, first, last)),
    ]


def _within(things: Sequence[_T], first: float, last: float) -> list[_T]:
    return [thing for thing in things if thing.start <= last and thing.end > first]


def _shape_stamp(sprite: Sprite, size: int, strength: float, reach: int) -> tuple[_Floats, _Floats]:
    """Keep and ink of a sprite with a thin black rim, on (2 reach + 1)^2 pixels."""
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    shape = torch.tensor(SHAPES.index(sprite.shape))
    distance = edge_distance(axis, axis[:, None], radius=sprite.radius, shape=shape)
    inside = coverage(distance).numpy()
    rim = coverage(distance - max(1.0, size / 112)).numpy()
    colour = np.array(COLOURS[sprite.colour], np.float32)
    colour = _GREY + np.float32(strength) * (colour - _GREY)
    return (1 - rim) * (1 - inside), colour[:, None, None] * inside


def _sprite_stamp(sprite: Sprite, size: int, strength: float) -> _Stamp:
    reach = math.ceil(sprite.radius + size / 112) + 1
    keep, ink = _shape_stamp(sprite, size, strength, reach)
    path = (sprite.x, sprite.y, sprite.vx, sprite.vy)
    return _Stamp(keep, ink, sprite.start, sprite.end, path)


def _box_stamp(sprite: Sprite, size: int, strength: float) -> _Stamp:
    reach, edge = math.floor(BOX_SCALE * sprite.radius), max(1, size // 56)
    keep, ink = _shape_stamp(sprite, size, strength, reach)
    border = np.ones_like(keep)
    border[edge:-edge, edge:-edge] = 0
    white = _GREY + strength * (_INK - _GREY)
    ink = np.where(border > 0, np.float32(white), ink)
    path = (sprite.x, sprite.y, sprite.vx, sprite.vy)
    return _Stamp(np.zeros_like(keep), ink, sprite.start, sprite.end, path)


def _text_stamp(caption: Caption, size: int, strength: float) -> _Stamp:
    mask = text_mask(caption.text, scale=max(1, int(caption.height * size / 112)))
    white = np.float32(_GREY + strength * (_INK - _GREY))
    ink = np.broadcast_to(white * mask, (3, *mask.shape))
    path = (caption.x, caption.y, 0.0, 0.0)
    return _Stamp(np.zeros_like(mask), ink, caption.start, caption.end, path)


def _noise_of(script: Script) -> _Floats:
    """Pixel noise of the whole video; each frame takes its own cut of it."""
    # RandomState, because its stream is frozen for all versions of numpy.
    rng = np.random.RandomState(rng_of(script.seed, "noise").getrandbits(32))
    side = script.spec.frame_size + _SHIFTS - 1
    return (NOISE_LEVELS * rng.standard_normal((3, side, side))).astype(np.float32)


def _rounded(image: _Floats) -> NDArray[np.uint8]:
    """As bytes; the image is overwritten."""
    np.rint(image, out=image)
    np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8)
