"""Open whatever holds frames: a video file, an image, a folder of images, a list of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, get_args

from videonsa.errors import UsageError, VideoError
from videonsa.video.container import SourceFrame
from videonsa.video.gpu import GpuSource
from videonsa.video.images import IMAGE_SUFFIXES, FrameList, ImageFrames
from videonsa.video.reader import VideoSource
from videonsa.video.sampling import VideoInfo
from videonsa.video.segments import Layout, Segment

VideoPath = str | Path | FrameList
"""What names a video: a file, an image, a folder of images, or the images themselves."""


Decoder = Literal["cpu", "gpu"]
"""What decodes a video file; that of a GPU is untested (`video/gpu.py`)."""


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


def open_source(path: VideoPath, *, decoder: Decoder = "cpu") -> Source:
    """Open a source; decodes at most one frame.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: a decoder that is not there, or images for that of the GPU.

    """
    if decoder not in get_args(Decoder):
        raise UsageError(f"decoder={decoder!r}: want one of {', '.join(get_args(Decoder))}")
    if isinstance(path, FrameList):
        _check_file(path.paths[0])
        images = True
    else:
        path = Path(path)
        images = _check_file(path, folder=True) or path.suffix.lower() in IMAGE_SUFFIXES
    if images and decoder == "gpu":
        raise UsageError(f"{path}: images with --decoder gpu: it decodes videos, leave it out")
    if images or isinstance(path, FrameList):
        return ImageFrames(path)
    return GpuSource(path) if decoder == "gpu" else VideoSource(path)


def _check_file(path: Path, *, folder: bool = False) -> bool:
    """Refuse what no frames can be in. Whether it is a folder, which `folder` allows."""
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
