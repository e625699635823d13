"""Draws frames of rendered videos from a description that is small to send.

A frame is a background, then stamps in order, each `image * keep + colour * ink` where it lies,
then its cut of a field of noise; in float32, each operation rounded by itself, at last to bytes. A
Triton kernel draws on a GPU, numpy elsewhere: the same bytes.
"""

import functools
import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videonsa.ops.triton.support import why_not_drawing

if TYPE_CHECKING:
    from videonsa.ops.triton.drawing import Canvas

NOISE_SHIFTS = 32
"""A frame's noise is one of NOISE_SHIFTS^2 cuts of its field."""
SHARED_FIELDS = 16
"""Fields of noise of one size that a process remembers."""
NOISE_LEVELS = 6.0
"""Standard deviation of the pixel noise, in levels of 255."""
_ALIGNED = 4  # numbers: arrays that travel together begin at multiples of 16 bytes

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int32]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mask:
    """What a stamp does to each pixel of its h x w values."""

    name: Hashable
    """What it shows: masks of equal names are equal."""
    keep: _Floats
    """[h, w]: share of the image that stays."""
    ink: _Floats
    """[h, w]: share of the colour that is added."""
    scale: int = 1
    """Pixels a side of each value."""

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels from its top and from its left to its middle."""
        height, width = self.keep.shape
        return height * self.scale // 2, width * self.scale // 2


class Stamp(NamedTuple):
    """A mask and the colour of its ink."""

    mask: Mask
    colour: tuple[float, float, float]  # levels of red, green and blue, float32 each


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Noise:
    """A field of pixel noise: float32 [3, side, side], side = size + NOISE_SHIFTS - 1."""

    seed: int
    """Fields of one seed and size are equal."""
    size: int
    """Pixels a side of the frames that are cut from it."""
    own: _Floats | None = None
    """Its values where it travels; None: whoever draws remembers it, as one of `SHARED_FIELDS`."""

    @classmethod
    def of_one_video(cls, seed: int, *, size: int) -> "Noise":
        """A field that no other video has."""
        return cls(seed=seed, size=size, own=_noise(seed, size))

    @property
    def field(self) -> _Floats:
        """Its values, in levels of 255."""
        return _shared_noise(self.seed, self.size) if self.own is None else self.own


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawing:
    """What N frames of S x S pixels show: M placements of K stamps."""

    size: int
    """S."""
    background: _Floats
    """[N, 3]: levels of red, green and blue half way down the frame."""
    noise: tuple[Noise, ...]
    """The fields that the frames are cut from; none: they have no noise."""
    noise_of: _Ints
    """[N]: the field of each frame."""
    shifts: _Ints
    """[N, 2]: top and left of its cut."""
    stamps: tuple[Stamp, ...]
    """K."""
    places: _Ints
    """[M, 3]: stamp, top and left, in the order of frames and in each as they are laid."""
    ends: _Ints
    """[N + 1]: where the placements of each frame begin, and the end."""

    def __len__(self) -> int:
        return len(self.background)

    @property
    def shape(self) -> torch.Size:
        """Of the frames: [N, 3, S, S]."""
        return torch.Size((len(self), 3, self.size, self.size))


def join_drawings(drawings: Sequence[Drawing]) -> Drawing:
    """The frames of drawings of one size behind one another; fields of noise occur once."""
    if len(drawings) == 1:
        return drawings[0]
    assert len({(drawing.size, not drawing.noise) for drawing in drawings}) == 1, "they differ"
    fields: dict[int, int] = {}  # by seed
    noise: list[Noise] = []
    noise_of, places, ends, num_stamps, num_places = [], [], [np.zeros(1, np.int32)], 0, 0
    for drawing in drawings:
        for field in drawing.noise:
            if fields.setdefault(field.seed, len(noise)) == len(noise):
                noise.append(field)
        renumbered = np.array([fields[field.seed] for field in drawing.noise], np.int32)
        noise_of.append(renumbered[drawing.noise_of] if drawing.noise else drawing.noise_of)
        places.append(drawing.places + np.array([num_stamps, 0, 0], np.int32))
        ends.append(drawing.ends[1:] + np.int32(num_places))
        num_stamps += len(drawing.stamps)
        num_places += len(drawing.places)
    return Drawing(
        size=drawings[0].size,
        background=np.concatenate([drawing.background for drawing in drawings]),
        noise=tuple(noise),
        noise_of=np.concatenate(noise_of),
        shifts=np.concatenate([drawing.shifts for drawing in drawings]),
        stamps=tuple(stamp for drawing in drawings for stamp in drawing.stamps),
        places=np.concatenate(places),
        ends=np.concatenate(ends),
    )


def draw_frames(drawing: Drawing, *, device: torch.device | str = "cpu") -> Tensor:
    """Its frames, on a device: uint8 [N, 3, S, S]."""
    device = torch.device(device)
    if device.type == "cuda":
        reason = why_not_drawing(device)
        if reason is None:
            return by_kernel(drawing, device)
        _say_numpy(reason)
    frames = np.empty(drawing.shape, np.uint8)
    for frame, image in zip(frames, _images(drawing), strict=True):
        np.rint(image, out=image)
        np.clip(image, 0, 255, out=image)
        frame[:] = image
    return torch.from_numpy(frames).to(device)


@functools.cache
def _say_numpy(reason: str) -> None:
    """One line for each reason, not one a call."""
    _logger.warning("rendered videos are drawn on the CPU: %s", reason)


def _images(drawing: Drawing) -> Iterable[_Floats]:
    """Each frame before it is rounded: float32 [3, S, S], one buffer reused."""
    size = drawing.size
    stamps = [_enlarged(stamp) for stamp in drawing.stamps]
    fields = [noise.field for noise in drawing.noise]
    shade = _shade(size)[:, None]
    image = np.empty((3, size, size), np.float32)
    shifts, places = drawing.shifts.tolist(), drawing.places.tolist()
    for index, (first, last) in enumerate(pairwise(drawing.ends.tolist())):
        np.multiply(drawing.background[index, :, None, None], shade, out=image)
        for stamp, top, left in places[first:last]:
            _lay(image, *stamps[stamp], top=top, left=left)
        if fields:
            top, left = shifts[index]
            field = fields[drawing.noise_of[index]]
            image += field[:, top : top + size, left : left + size]
        yield image


def _lay(image: _Floats, keep: _Floats, ink: _Floats, *, top: int, left: int) -> None:
    """A stamp, cut at the edges; keep [h, w], ink [3, h, w]."""
    (height, width), size = keep.shape, image.shape[-1]
    rows = slice(max(0, -top), min(height, size - top))
    columns = slice(max(0, -left), min(width, size - left))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    patch = image[:, top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    patch *= keep[rows, columns]
    patch += ink[:, rows, columns]


def _enlarged(stamp: Stamp) -> tuple[_Floats, _Floats]:
    """Keep and ink of each of its pixels."""
    mask, colour = stamp.mask, np.array(stamp.colour, np.float32)
    keep, ink = (x.repeat(mask.scale, 0).repeat(mask.scale, 1) for x in (mask.keep, mask.ink))
    return keep, colour[:, None, None] * ink


def _shade(size: int) -> _Floats:
    """Of each row: backgrounds are brighter at the foot."""
    return np.linspace(0.8, 1.2, size, dtype=np.float32)


def _noise(seed: int, size: int) -> _Floats:
    # RandomState, because its stream is frozen for all versions of numpy.
    side = size + NOISE_SHIFTS - 1
    values = np.random.RandomState(seed).standard_normal((3, side, side))
    return (NOISE_LEVELS * values).astype(np.float32)


_shared_noise = functools.lru_cache(maxsize=SHARED_FIELDS)(_noise)


@functools.lru_cache(maxsize=SHARED_FIELDS)
def _shared_noise_on(device: torch.device, seed: int, size: int) -> Tensor:
    return torch.from_numpy(_shared_noise(seed, size)).to(device)


def can_draw_patches(device: torch.device | str) -> bool:
    """Whether patches can be drawn on a device without frames."""
    device = torch.device(device)
    return device.type == "cuda" and why_not_drawing(device) is None


def draw_patches(
    drawing: Drawing,
    levels: Tensor,
    *,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
) -> Tensor:
    """The patches of its frames, in the order of the Qwen2-VL processor, by the kernel alone.

    Args:
        drawing: N frames, N a multiple of temporal_patch_size, S of patch_size * merge_size.
        levels: `[3, 256]`: what the model reads for each byte of red, green and blue; where the
            patches are wanted, in their dtype.
        patch_size: height and width of a patch, pixels.
        merge_size: patches that a merged token spans along each side.
        temporal_patch_size: frames of a patch.

    Returns:
        `[P, 3 * temporal_patch_size * patch_size**2]`.
    """
    from videonsa.ops.triton.drawing import Patches, draw_into  # needs Triton

    width = 3 * temporal_patch_size * patch_size**2
    patches = levels.new_empty((drawing.shape.numel() // width, width))
    how = Patches(levels, patch_size, merge_size, temporal_patch_size)
    draw_into(patches, *canvas_on(drawing, levels.device), how)
    return patches


def by_kernel(drawing: Drawing, device: torch.device) -> Tensor:
    """As `draw_frames`, by the kernel."""
    from videonsa.ops.triton.drawing import draw_into  # needs Triton

    frames = torch.empty(drawing.shape, dtype=torch.uint8, device=device)
    draw_into(frames, *canvas_on(drawing, device))
    return frames


def canvas_on(drawing: Drawing, device: torch.device) -> "tuple[Canvas, Tensor | None]":
    """What the kernel reads, noise apart; all that travels goes to the device in one transfer."""
    from videonsa.ops.triton.drawing import Canvas  # needs Triton

    own = [noise.own for noise in drawing.noise if noise.own is not None]
    arrays = [*_canvas_arrays(drawing), *own]
    moved = iter(_moved(arrays, device))
    canvas = Canvas(*(next(moved) for _ in Canvas._fields))
    fields = [
        _shared_noise_on(device, noise.seed, noise.size) if noise.own is None else next(moved)
        for noise in drawing.noise
    ]
    return canvas, torch.stack(fields) if fields else None


def _canvas_arrays(drawing: Drawing) -> list[NDArray[np.float32] | NDArray[np.int32]]:
    """The fields of the kernel's `Canvas`."""
    masks: dict[Hashable, tuple[int, int, int, int]] = {}  # offset, height, width, scale
    values = [np.zeros(_ALIGNED, np.float32)]  # never empty
    offset = _ALIGNED
    for mask, _ in drawing.stamps:
        if mask.name not in masks:
            masks[mask.name] = (offset, *mask.keep.shape, mask.scale)
            values += [mask.keep.ravel(), mask.ink.ravel()]
            offset += 2 * mask.keep.size
    table = [masks[mask.name] for mask, _ in drawing.stamps]
    colours = [colour for _, colour in drawing.stamps]
    return [
        _shade(drawing.size),
        drawing.background,
        drawing.noise_of,
        drawing.shifts,
        drawing.ends,
        drawing.places,
        np.array(table, np.int32),
        np.array(colours, np.float32),
        np.concatenate(values),
    ]


def _moved(arrays: Sequence[_Floats | _Ints], device: torch.device) -> Sequence[Tensor]:
    """Arrays of four-byte numbers on a device, by one transfer."""
    sizes = [-(-array.size // _ALIGNED) * _ALIGNED for array in arrays]
    together = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    parts = together.split(sizes)
    for part, array in zip(parts, arrays, strict=True):
        part.numpy()[: array.size] = array.ravel().view(np.int32)
    moved = together.to(device, non_blocking=True).split(sizes)
    return [
        part[: array.size].view(getattr(torch, array.dtype.name)).view(array.shape)
        for part, array in zip(moved, arrays, strict=True)
    ]
