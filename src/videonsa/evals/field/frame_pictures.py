"""Small pictures of the frames that samples were asked with, from the videos that are there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from videonsa.errors import VideoNSAError
from videonsa.evals.field.shown import ShownFrames, ShownSample

MOST_OF_A_VIDEO = 6
MOST_OF_A_PAGE = 300
_LONGEST = 112
"""Pixels of a picture's longer side."""


class FramePicture(NamedTuple):
    """A frame in a page."""

    seconds: float
    jpeg: str
    """In base64."""
    ratio: float
    """Of width to height."""


@dataclass(slots=True)
class Pictures:
    """Pictures by source, and what of them is not there."""

    folder: Path | None = None
    """Where videos are looked for by their names before they are looked for where they were."""
    most: int = MOST_OF_A_PAGE
    of: dict[ShownFrames, tuple[FramePicture, ...]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """By source, why there is no picture."""

    def add(self, samples: Iterable[ShownSample]) -> None:
        """Read the pictures of samples, those of the same frames once."""
        for sample in samples:
            for frames in sample.frames:
                if frames not in self.of:
                    self.of[frames] = self._read(frames)

    @property
    def count(self) -> int:
        """Pictures so far."""
        return sum(map(len, self.of.values()))

    def _read(self, frames: ShownFrames) -> tuple[FramePicture, ...]:
        room = min(MOST_OF_A_VIDEO, self.most - self.count)
        path = self._path_of(frames.source)
        if frames.source in self.missing or not room:
            return ()
        if path is None:
            self.missing[frames.source] = "it is not there"
            return ()
        try:
            return _pictures(path, spread(frames.seconds, room))
        except (VideoNSAError, OSError) as error:
            self.missing[frames.source] = str(error)
            return ()

    def _path_of(self, source: str) -> Path | None:
        path = Path(source)
        places = [path] if self.folder is None else [self.folder / path.name, path]
        return next((place for place in places if place.is_file()), None)

    def sentence(self) -> str:
        """How many pictures there are, and of which videos there are none."""
        total = sum(len(frames.seconds) for frames in self.of)
        told = f"{self.count} of {total} frames are shown as pictures"
        if self.count >= self.most:
            told += f", the most that a page holds ({self.most})"
        if self.missing:
            name, why = next(iter(self.missing.items()))
            videos = "a video" if len(self.missing) == 1 else f"{len(self.missing)} videos"
            told += f"; of {videos} there is none ({name}: {why})"
        return told + "."


def spread(seconds: Sequence[float], most: int) -> list[float]:
    """At most so many, evenly spread from the first to the last."""
    if len(seconds) <= most:
        return list(seconds)
    last = len(seconds) - 1
    return [seconds[round(i * last / max(1, most - 1))] for i in range(most)]


def _pictures(path: Path, seconds: Sequence[float]) -> tuple[FramePicture, ...]:
    from videonsa.video.decode import read_video
    from videonsa.video.sampling import SamplingSpec
    from videonsa.webpage import thumbnail

    # An image has no time but 0.
    times = {"timestamps": sorted(set(seconds))} if any(seconds) else {"num_frames": 1}
    wanted = SamplingSpec(**times)
    clip = read_video(path, sampling=wanted, workers=1, progress=False)
    return tuple(
        FramePicture(
            time, thumbnail(frame.numpy(), longest=_LONGEST), frame.shape[2] / frame.shape[1]
        )
        for time, frame in zip(clip.times, clip.frames, strict=True)
    )
