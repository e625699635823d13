"""Open whatever holds frames: a video file, an image, a folder of images, a list of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from videonsa.errors import VideoError
from videonsa.video.container import SourceFrame
from videonsa.video.images import IMAGE_SUFFIXES, FrameList, ImageFrames
from videonsa.video.reader import VideoSource
from videonsa.video.sampling import VideoInfo
from videonsa.video.segments import Layout, Segment

VideoPath = str | Path | FrameList
"""What names a video: a file, an image, a folder of images, or the images themselves."""


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


def open_source(path: VideoPath) -> Source:
    """Open a source; decodes at most one frame.

    Raises:
        VideoError: nothing there that can be read.

    """
    if isinstance(path, FrameList):
        _check_file(path.paths[0])
        return ImageFrames(path)
    path = Path(path)
    if _check_file(path, folder=True):
        return ImageFrames(path)
    return ImageFrames(path) if path.suffix.lower() in IMAGE_SUFFIXES else VideoSource(path)


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
