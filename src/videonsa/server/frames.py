"""How the server reads media: whatever decodes them, wherever it runs, gives a `VideoStream`."""

from pathlib import Path
from typing import Protocol

from videonsa.video.decode import probe, stream_video
from videonsa.video.parts import VideoStream
from videonsa.video.sampling import SamplingSpec, VideoInfo


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

    def close(self) -> None:
        """Nothing runs."""
