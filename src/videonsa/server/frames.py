"""How the server reads media: whatever decodes them, wherever it runs, gives a `VideoStream`."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from videonsa.errors import VideoError
from videonsa.video.decode import probe, stream_video
from videonsa.video.parts import VideoStream
from videonsa.video.sampling import SamplingSpec, VideoInfo
from videonsa.webpage import thumbnail


class FrameReader(Protocol):
    """Opens media and decodes their frames, in this process or in another."""

    def open(self, media: Path, sampling: SamplingSpec) -> VideoStream:
        """Begin to decode; frames are taken from the stream, and closing them stops it.

        Raises:
            VideoError: nothing there that can be read; also while frames are taken.
            UsageError: a sampling that does not go with these media.
            BudgetError: as for `stream_video`.
        """

    def describe(self, path: Path) -> VideoInfo:
        """What the header of a file states.

        Raises:
            VideoError: nothing there that can be read.
        """

    def thumbnails(self, path: Path, times: Sequence[float], *, longest: int) -> list[str]:
        """See `thumbnails`."""

    def close(self) -> None:
        """Stop whatever runs."""


class ReadHere:
    """Decodes in this process, where a crash of the decoder ends the server."""

    def open(self, media: Path, sampling: SamplingSpec) -> VideoStream:
        """As `stream_video`."""
        return stream_video(media, sampling=sampling, beside=True)

    def describe(self, path: Path) -> VideoInfo:
        """As `probe`."""
        return probe(path)

    def thumbnails(self, path: Path, times: Sequence[float], *, longest: int) -> list[str]:
        """See `thumbnails`."""
        return thumbnails(path, times, longest=longest)

    def close(self) -> None:
        """Nothing runs."""


def thumbnails(path: Path, times: Sequence[float], *, longest: int) -> list[str]:
    """The frames on screen at some times, small, as JPEGs in base64.

    Args:
        path: of a video or an image.
        times: seconds, ascending. A frame that does not decode is that of the time before.
        longest: pixels of the longer side.

    Raises:
        VideoError: no frame can be read.
    """
    given = None if probe(path).is_image else tuple(times)
    stream = stream_video(path, sampling=SamplingSpec(timestamps=given))
    found: dict[int, str] = {}
    with closing(stream.frames):
        for frame in stream.frames:
            found[frame.target] = thumbnail(frame.pixels, longest=longest)
    if not found:
        raise VideoError(f"{path}: no frame decodes: want an undamaged video")
    last = found[min(found)]
    return [last := found.get(place, last) for place in range(len(times))]
