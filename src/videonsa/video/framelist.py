"""`FrameList`: pictures that are the frames of a video, in files or in memory."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.video.pictures import FORMATS, Header, header_of, read_rgb

FOLDER_FPS = 2.0
"""Frames per second that a list or folder of images stands for: Qwen2-VL's rate for them."""
Picture = Image.Image | NDArray[Any] | Tensor
"""A picture in memory. An array or tensor is [H, W, 3] or [3, H, W], RGB: uint8, or floats from 0
to 1."""
_TENSORS = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class HeldPicture:
    """A picture in memory that was checked; equal to nothing but itself."""

    picture: Image.Image | NDArray[Any]
    """An array is [H, W, 3], uint8 or floats from 0 to 1."""

    def __str__(self) -> str:
        return "image in memory"

    @classmethod
    def of(cls, picture: Picture) -> "HeldPicture":
        """Refuse what is no picture: UsageError. Nothing is copied but what is on a GPU."""
        if isinstance(picture, Image.Image):
            if isinstance(picture, ImageFile.ImageFile) and picture.format not in FORMATS:
                raise UsageError(
                    f"a {picture.format} image: want one of {', '.join(FORMATS)}; "
                    "convert it first (.convert('RGB'))"
                )
            return cls(picture)
        return cls(_channels_last(_checked_levels(_as_array(picture)), ndim=3))

    def header(self) -> Header:
        """What is known of it without its pixels."""
        if isinstance(self.picture, Image.Image):
            return header_of(self.picture)
        height, width = self.picture.shape[:2]
        return Header(width=width, height=height, format="", num_pictures=1, deep="")

    def read(self) -> NDArray[np.uint8]:
        """[H, W, 3]; floats are scaled to 0 to 255 and rounded."""
        if isinstance(self.picture, Image.Image):
            return read_rgb(self.picture)
        if self.picture.dtype == np.uint8:
            return self.picture
        return np.rint(self.picture.astype(np.float32) * 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class FrameList:
    """Pictures that are the frames of a video, in order.

    Args:
        frames: a folder of images, or a list of pictures: paths of images, PIL images, numpy arrays
            or torch tensors [H, W, 3] or [3, H, W]; or one array or tensor of all frames,
            [N, H, W, 3] or [N, 3, H, W]. RGB; uint8, or floats from 0 to 1.
        fps: how many of them make a second.
        times: in place of `fps`, the seconds of each, ascending.

    Raises:
        UsageError: no frames, frames of another kind, or a rate or times that are none.

    """

    frames: Any
    fps: float = FOLDER_FPS
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Check everything: a folder is kept as its path, the rest as a tuple."""
        if isinstance(self.frames, str | os.PathLike):
            object.__setattr__(self, "frames", Path(os.fsdecode(self.frames)))
        else:
            object.__setattr__(self, "frames", tuple(_pictures(self.frames)))
            if not self.frames:
                raise UsageError("a list of no frames: want images, or the paths of images")
        if not (_is_number(self.fps) and 0 < self.fps < math.inf):
            raise UsageError(f"frames at fps={self.fps!r}: want a number above 0, for example 2.0")
        if self.times is not None:
            object.__setattr__(self, "times", self._checked_times(self.times))

    def _checked_times(self, given: Sequence[float]) -> tuple[float, ...]:
        if self.folder is not None:
            raise UsageError("times of a folder: want fps, or a list of its images with times")
        if self.fps != FOLDER_FPS:
            raise UsageError("fps and times given together: give one of them")
        if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
            raise UsageError(f"times came as {type(given).__name__}: want a list of seconds")
        for time in given:
            if not (_is_number(time) and 0 <= time < math.inf):
                raise UsageError(f"time {time!r} of a frame: want seconds, a number of at least 0")
        times = tuple(float(time) for time in given)
        if len(times) != len(self.frames):
            raise UsageError(
                f"{len(times)} times of {len(self.frames)} frames: want one time a frame"
            )
        for before, after in pairwise(times):
            if after <= before:
                raise UsageError(f"times {before:g}, {after:g} of frames: want them ascending")
        return times

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        first, more = self.frames[0], len(self.frames) - 1
        return f"{first} and {more} more frames" if more else str(first)

    @property
    def folder(self) -> Path | None:
        """The folder whose images the frames are, where it is one."""
        return self.frames if isinstance(self.frames, Path) else None

    @property
    def pictures(self) -> tuple[Path | HeldPicture, ...]:
        """The frames; none of a folder, which is read when it is opened."""
        return () if self.folder is not None else self.frames

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those frames that are in files."""
        return tuple(picture for picture in self.pictures if isinstance(picture, Path))


def _pictures(frames: object) -> Iterator[Path | HeldPicture]:
    if isinstance(frames, np.ndarray | Tensor):
        array = _as_array(frames)
        if array.ndim != 4:
            raise UsageError(
                f"frames came as {array.dtype} {list(array.shape)}: want [N, H, W, 3] or "
                "[N, 3, H, W], or a list of pictures"
            )
        for picture in _channels_last(_checked_levels(array), ndim=4):
            yield HeldPicture(picture)
        return
    if not isinstance(frames, list | tuple):
        raise UsageError(
            f"frames came as {type(frames).__name__}: want a folder, a list of images or of their "
            "paths, or an array [N, H, W, 3]"
        )
    for frame in frames:
        if isinstance(frame, str | os.PathLike):
            yield Path(os.fsdecode(frame))
        elif isinstance(frame, HeldPicture):
            yield frame
        elif isinstance(frame, Image.Image | np.ndarray | Tensor):
            yield HeldPicture.of(frame)
        else:
            raise UsageError(
                f"a frame came as {type(frame).__name__}: want the path of an image, a PIL image, "
                "or an array or tensor [H, W, 3]"
            )


def _as_array(frames: NDArray[Any] | Tensor) -> NDArray[Any]:
    """The same memory as an array; what is on a GPU is copied."""
    if not isinstance(frames, Tensor):
        return frames
    if frames.dtype not in _TENSORS:
        raise UsageError(f"frames came as {frames.dtype}: want uint8, or floats from 0 to 1")
    tensor = frames.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # which numpy does not have
        tensor = tensor.float()
    return tensor.numpy()


def _checked_levels(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"frames came as {array.dtype}: want uint8, or floats from 0 to 1")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise UsageError(
            f"frames came as {array.dtype} from {low:g} to {high:g}: want floats from 0 to 1, or "
            "uint8; scale them first"
        )
    return array


def _channels_last(array: NDArray[Any], *, ndim: int) -> NDArray[Any]:
    """[H, W, 3] or [N, H, W, 3] of that or of channels first."""
    if array.ndim == ndim and 0 not in array.shape:
        if array.shape[-1] == 3:
            return array
        if array.shape[-3] == 3:
            return np.moveaxis(array, -3, -1)
    shapes = "[N, H, W, 3] or [N, 3, H, W]" if ndim == 4 else "[H, W, 3] or [3, H, W]"
    raise UsageError(f"frames came as {array.dtype} {list(array.shape)}: want {shapes}, RGB")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
