"""Open whatever holds frames: a video file, an image, a folder of images, pictures in memory."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, get_args
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image
from torch import Tensor

from videonsa.errors import UsageError, VideoError
from videonsa.video.container import SourceFrame
from videonsa.video.framelist import FrameList, HeldPicture, Picture
from videonsa.video.gpu import GpuSource
from videonsa.video.images import ImageFrames, open_image
from videonsa.video.pictures import IMAGE_SUFFIXES, is_picture
from videonsa.video.reader import VideoSource
from videonsa.video.sampling import VideoInfo
from videonsa.video.segments import Layout, Segment

VideoPath = str | Path | FrameList
"""What names a video: a file, an image, a folder of images, or the images themselves."""
VideoLike = VideoPath | os.PathLike[str] | Picture | Sequence[str | os.PathLike[str] | Picture]
"""What can be passed as a video: what names one, a picture in memory, an array or tensor
[N, H, W, 3] or [N, 3, H, W] of its frames, or a list of pictures or of their paths."""


Decoder = Literal["cpu", "gpu"]
"""What decodes a video file; that of a GPU is untested (`video/gpu.py`)."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class Source(Protocol):
    """What frames can be read from."""

    @property
    def info(self) -> VideoInfo:
        """What it states about itself."""

    def layout(self, targets: Sequence[float], *, keyframes: bool) -> Layout:
        """Where to cut it for the wanted times."""

    def reader(
        self, layout: Layout
    ) -> AbstractContextManager[Callable[[Segment], Iterator[SourceFrame]]]:
        """What reads segments of a layout."""


def open_source(video: VideoLike, *, decoder: Decoder = "cpu") -> Source:
    """Open a source; decodes at most one frame, but all of an animated image.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: what is no video, a decoder that is not there, or images for that of the GPU.

    """
    if decoder not in get_args(Decoder):
        raise UsageError(f"decoder={decoder!r}: want one of {', '.join(get_args(Decoder))}")
    named = name_source(video)
    if isinstance(named, Path) and _check_file(named, folder=True):
        named = FrameList(named)
    if isinstance(named, Path) and not _is_image(named):
        return GpuSource(named) if decoder == "gpu" else VideoSource(named)
    if decoder == "gpu":
        raise UsageError(f"{named}: images with --decoder gpu: it decodes videos, leave it out")
    if isinstance(named, Path):
        return open_image(named)
    if isinstance(named, FrameList):
        _check_frames(named)
    return ImageFrames(named)


def _check_frames(frames: FrameList) -> None:
    for path in frames.paths[:1]:
        _check_file(path)
    if frames.folder is not None and not _check_file(frames.folder, folder=True):
        raise UsageError(
            f"{frames.folder}: a file with a frame rate: want a folder of images; a video or an "
            "animation states its own, leave it out"
        )


def name_source(video: object) -> Path | FrameList | HeldPicture:
    """What was passed as a video, as one of what can be opened.

    Raises:
        UsageError: something else; says what came.

    """
    if isinstance(video, str | os.PathLike):
        return _path_of(os.fsdecode(video))
    if isinstance(video, FrameList | HeldPicture):
        return video
    if isinstance(video, Image.Image):
        return HeldPicture.of(video)
    if isinstance(video, np.ndarray | Tensor):
        return HeldPicture.of(video) if video.ndim == 3 else FrameList(video)
    if isinstance(video, list | tuple):
        return FrameList(video)
    came = type(video).__name__
    advice = ""
    if isinstance(video, bytes | bytearray | memoryview) or hasattr(video, "read"):
        advice = "; write its bytes to a file first, or open an image with PIL.Image.open"
    elif isinstance(video, Iterator):
        advice = "; make a list of what it gives"
    raise UsageError(
        f"a video came as {came}: want a path, a PIL image, an array or tensor of frames, a list "
        f"of images or a videonsa.FrameList{advice}"
    )


def _path_of(text: str) -> Path:
    if text.lower().startswith("file:/"):
        parts = urlsplit(text)
        if parts.netloc in ("", "localhost"):
            return Path(url2pathname(parts.path))
    if not text:
        raise UsageError("an empty path: want a video, a folder of images or an image")
    if _ADDRESS.match(text) and not os.path.exists(text):
        address = re.sub(":/+", "://", text, count=1)  # a Path has lost a slash
        raise VideoError(f"{address}: an address, not a file: want a file here; download it first")
    return Path(text)


def _is_image(path: Path) -> bool:
    """By its suffix; by its first bytes where it has none."""
    return path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and is_picture(path))


def _check_file(path: Path, *, folder: bool = False) -> bool:
    """Whether a path is a folder, which `folder` allows; refuses what cannot hold frames."""
    try:
        if folder and path.is_dir():
            return True
        if not path.exists():
            raise VideoError(f"{path}: no such file: want a video, a folder of images or an image")
        # A pipe or a device may never end.
        if not path.is_file():
            raise VideoError(f"{path}: not a regular file: want a video, a folder or an image")
        with path.open("rb") as file:
            if not file.read(1):
                raise VideoError(f"{path}: an empty file: want a video; copy or download it again")
    except OSError as error:
        reason = (error.strerror or "not possible").lower()
        raise VideoError(f"{path}: cannot be read: {reason}: name one that you may read") from error
    return False
