"""One image, or a folder of images taken as frames, through Pillow."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from videonsa.errors import UsageError, VideoError
from videonsa.video.container import SourceFrame
from videonsa.video.sampling import VideoInfo
from videonsa.video.segments import Layout, Segment, whole_layout

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
FOLDER_FPS = 2.0
"""Frames per second that a folder of images stands for: Qwen2-VL's rate for lists of frames."""
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class FrameList:
    """Images that are the frames of a video, in order."""

    paths: tuple[Path, ...]
    fps: float = FOLDER_FPS
    """How many of them make a second."""

    def __post_init__(self) -> None:
        """Refuse an empty list and a rate that is none: UsageError."""
        if not self.paths:
            raise UsageError("a list of no frames: want the paths of images")
        if not 0 < self.fps < math.inf:
            raise UsageError(f"frames at fps={self.fps!r}: want a number above 0, for example 2.0")

    def __str__(self) -> str:
        return f"{self.paths[0]} and {len(self.paths) - 1} more frames"


class ImageFrames:
    """An image (duration 0), a list of images, or those of a folder, `img2` before `img10`.

    Images of other sizes than the first are resized to the first's shape.
    """

    def __init__(self, path: Path | FrameList) -> None:
        if isinstance(path, FrameList):
            self._paths, fps, kind = list(path.paths), path.fps, "list"
        elif path.is_dir():
            self._paths, fps, kind = _images_in(path), FOLDER_FPS, "folder"
        else:
            self._paths, fps, kind = [path], 0.0, "image"
        width, height, codec = _header(self._paths[0])
        self.info = VideoInfo(
            path=str(path),
            duration=len(self._paths) / fps if fps else 0.0,
            num_frames=len(self._paths),
            fps=fps,
            width=width,
            height=height,
            codec=codec,
            container=kind,
        )

    def layout(self, targets: Sequence[float], *, keyframes: bool) -> Layout:
        """All images in one part, whatever is wanted of them."""
        return whole_layout(targets, problem="images have no keyframes")

    @contextmanager
    def reader(self, layout: Layout) -> Iterator[Callable[[Segment], Iterator[SourceFrame]]]:
        """What reads the only segment."""
        yield lambda segment: self.frames()

    def frames(self) -> Iterator[SourceFrame]:
        """One frame an image; an image is read when its pixels are asked for."""
        period = 1 / (self.info.fps or FOLDER_FPS)
        for index, path in enumerate(self._paths):
            yield SourceFrame(
                time=index * period,
                end=(index + 1) * period,
                after_error=False,
                damaged=False,
                rgb=partial(_read_rgb, path),
            )


def _images_in(folder: Path) -> list[Path]:
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    if not paths:
        raise VideoError(
            f"{folder}: a folder without images: want frames as "
            f"{', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))}"
        )
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Digits compare as numbers; the name itself breaks ties such as img1 and img01."""
    parts = re.split(r"([0-9]+)", path.name)
    key = [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
    return [(digits, number, "" if digits else part) for digits, number, part in key] + [
        (False, 0, path.name)
    ]


def _header(path: Path) -> tuple[int, int, str]:
    """Width and height as displayed, and the format, without decoding the pixels."""
    try:
        with Image.open(path) as image:
            swapped = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation with a transpose
            width, height = image.size[::-1] if swapped else image.size
            return width, height, (image.format or "").lower()
    except Exception as error:  # Pillow lets through whatever a format's parser meets.
        raise VideoError(_why_not_read(path, error)) from error


def _read_rgb(path: Path) -> NDArray[np.uint8]:
    """The picture [H, W, 3], turned as EXIF says; what is transparent becomes white."""
    try:
        with Image.open(path) as image:
            picture = ImageOps.exif_transpose(image)
            if picture.has_transparency_data:
                opaque = Image.new("RGBA", picture.size, _WHITE)
                picture = Image.alpha_composite(opaque, picture.convert("RGBA"))
            return np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow lets through whatever a format's parser meets.
        raise VideoError(_why_not_read(path, error)) from error


def _why_not_read(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{path}: not an image that can be read ({reason}): want a whole image; save it again"
