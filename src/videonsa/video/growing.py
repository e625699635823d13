"""Sources that still grow, read as they grow: the bytes of a file, the images of a folder."""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from videonsa.errors import VideoError
from videonsa.video.container import TIME_TOLERANCE, SourceFrame
from videonsa.video.decode import HOLD_SLACK, Span, on_screen
from videonsa.video.images import images_among, names_in, natural_key
from videonsa.video.pictures import open_picture, read_rgb
from videonsa.video.sampling import FOLDER, VideoInfo

SETTLED_AFTER = 2.0
"""Seconds without a write after which an image that does not decode is taken for damaged."""
_BOX = struct.Struct(">I4s")
_LONG_BOX = struct.Struct(">Q")
_FIRST_BOXES = frozenset({b"ftyp", b"wide", b"free", b"skip", b"mdat", b"moov", b"pnot"})
_LONG, _TO_THE_END = 1, 0
"""Sizes of a box that stand for another: one in 64 bits that follows, and the rest of the file."""
_MOST_BOXES = 1000
Index = Literal["there", "whole", "missing", "not yet", "none"]
"""Of an mp4: "whole" is a finished one that is not in fragments, "not yet" one whose next box will
tell, "none" a file that is no mp4."""


class Pace:
    """How often a source is looked at, and how long it may go without growing.

    Args:
        poll: seconds between two looks.
        idle: seconds without growth after which a source counts as finished; None is never.

    """

    def __init__(self, *, poll: float, idle: float | None) -> None:
        self.poll = poll
        self.idle = idle
        self._since = time.monotonic()
        self._has_grown = False
        self.num_waits = 0
        """How many times the source was waited for."""

    def grown(self) -> None:
        """There is something new: growth, or what was there from the beginning."""
        self._since = time.monotonic()
        self._has_grown = self.num_waits > 0

    def wait(self, written: float) -> bool:
        """Sleep until the next look; False, at once, if the source counts as finished.

        Args:
            written: when it was last written to, as `time.time` counts: a source that was finished
                before anybody looked is not waited for.

        """
        if self.idle is not None:
            quiet = time.monotonic() - self._since
            if not self._has_grown:
                quiet = max(quiet, time.time() - written)
            if quiet >= self.idle:
                return False
        self.num_waits += 1
        time.sleep(self.poll)
        return True


class GrowingFile:
    """The bytes of a file, from first to last: reading waits at the end of what is there.

    So a demuxer never meets the end of a file that will go on, and need not begin again after it.
    """

    def __init__(self, path: Path, pace: Pace) -> None:
        self.name = str(path)
        self.warning: str | None = None
        """Why it ended early, where it did."""
        self.is_empty = True
        """Nothing was read as yet."""
        self._pace = pace
        self._file = path.open("rb", buffering=0)
        self._failure: BaseException | None = None
        self._ended = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, size: int) -> bytes:
        """At least one byte and at most `size`; none at the end.

        Raises nothing, also no KeyboardInterrupt, since FFmpeg cannot pass it on: `check` does.
        """
        try:
            while not self._ended:
                if data := self._file.read(size):
                    self.is_empty = False
                    self._pace.grown()
                    return data
                state = os.fstat(self._file.fileno())
                if state.st_size < self._file.tell():
                    self.warning = "it became shorter while it was read: what follows is not read"
                    self._ended = True
                else:
                    self._ended = not self._pace.wait(state.st_mtime)
        except BaseException as error:  # kept, not lost
            self._failure = error
            self._ended = True
        return b""

    def check(self) -> None:
        """Raise what interrupted a read."""
        failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            raise VideoError(
                f"{self.name}: cannot be read on ({failure.strerror}): want a file that stays"
            ) from failure
        if failure is not None:
            raise failure


class GrowingFolder:
    """The images of a folder, in the order of their names, as they are written.

    An image is read once its time is sampled, and then waited for until it decodes. Images of other
    sizes than the first are resized to the first's shape.

    Args:
        folder: may be empty as yet: its first image is waited for.
        pace: how to wait.
        fps: how many images make a second; None takes the time at which each was last written.

    Raises:
        VideoError: no image comes, or the first does not decode.

    """

    def __init__(self, folder: Path, pace: Pace, *, fps: float | None) -> None:
        self._folder = folder
        self._pace = pace
        self._fps = fps
        self._num_late = 0
        self._paths: Iterator[Path] = self._arriving()
        first = next(self._paths, None)
        if first is None:
            raise VideoError(
                f"{folder}: no image came within {pace.idle:g} s: want a folder that frames are "
                "written to, or wait longer (idle)"
            )
        self._paths = chain([first], self._paths)
        height, width = self.picture(first).shape[:2]
        self.info = VideoInfo(
            path=str(folder),
            duration=0.0,
            num_frames=None,
            fps=fps or 0.0,
            width=width,
            height=height,
            codec=first.suffix[1:].lower(),
            container=FOLDER,
        )

    def spans(self) -> Iterator[Span]:
        """The frames that images are, with the seconds for which each is on screen."""
        if self._fps is None:
            # Until when an image is on screen is known once the next is there.
            return on_screen(self._frames_as_written(), slack=-TIME_TOLERANCE)
        return self._spans_by_rate(self._fps)

    def warnings(self) -> Iterator[str]:
        """What is not read, one line each."""
        if self._num_late:
            yield (
                f"images left out: {self._num_late}, which came after images whose names follow "
                "theirs"
            )

    def close(self) -> None:
        """Nothing is open between two images."""

    def _arriving(self) -> Iterator[Path]:
        """The images, in the order of their names, as they appear."""
        seen: set[str] = set()
        latest: Path | None = None
        while True:
            names = [name for name in names_in(self._folder) if name not in seen]
            seen.update(names)
            images, _ = images_among(self._folder, names)
            after = [p for p in images if latest is None or natural_key(p) > natural_key(latest)]
            self._num_late += len(images) - len(after)
            for path in after:
                latest = path
                self._pace.grown()
                yield path
            written = _last_write([self._folder] if latest is None else [self._folder, latest])
            if not images and not self._pace.wait(written):
                return

    def picture(self, path: Path) -> NDArray[np.uint8]:
        """The picture [H, W, 3] of an image, once it is written.

        Raises:
            VideoError: it does not decode, and is no longer written to.

        """
        size = -1
        while True:
            try:
                with open_picture(path) as image:
                    return read_rgb(image, is_ours=True)
            except VideoError:
                # An image that is half written does not decode either.
                before, size = size, _size(path)
                if size == before and time.time() - _last_write([path]) > SETTLED_AFTER:
                    raise
            time.sleep(self._pace.poll)

    def _spans_by_rate(self, fps: float) -> Iterator[Span]:
        period = 1 / fps
        for index, path in enumerate(self._paths):
            begin, end = index * period, (index + 1) * period
            frame = self._frame(path, begin, end)
            lead = TIME_TOLERANCE if index else HOLD_SLACK
            yield frame, begin - lead, end - TIME_TOLERANCE

    def _frames_as_written(self) -> Iterator[SourceFrame]:
        first = last = None
        for path in self._paths:
            with suppress(VideoError):
                self.picture(path)  # its time is final once it is whole
                written = _last_write([path])
                first = written if first is None else first
                last = written - first if last is None else max(last, written - first)
                yield self._frame(path, last, last)

    def _frame(self, path: Path, begin: float, end: float) -> SourceFrame:
        return SourceFrame(
            time=begin, end=end, after_error=False, damaged=False, rgb=partial(self.picture, path)
        )


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return -1


def _last_write(paths: list[Path]) -> float:
    """When the latest of these was written to, as `time.time` counts; 0 where they are gone."""
    latest = 0.0
    for path in paths:
        with suppress(OSError):
            latest = max(latest, path.stat().st_mtime)
    return latest


def mp4_index(path: Path) -> Index:
    """Whether the index (moov) of an mp4 is there, without which nothing decodes."""
    size, end = path.stat().st_size, 0
    seen: set[bytes] = set()
    with path.open("rb") as file:
        for name, end in _boxes(file, size):
            if not seen and name not in _FIRST_BOXES:
                return "none"
            if name == b"moov" and b"mdat" in seen and end > size:
                return "missing"  # it is being written
            seen.add(name)
    if b"moov" not in seen:
        return "missing" if b"mdat" in seen else "not yet"
    is_whole = end == size and b"mdat" in seen and b"moof" not in seen
    return "whole" if is_whole else "there"


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """The boxes of a file of `size` bytes: the name of each, and where it ends as it states."""
    place = 0
    for _ in range(_MOST_BOXES):
        file.seek(place)
        head = file.read(_BOX.size)
        if len(head) < _BOX.size:
            return
        length, name = _BOX.unpack(head)
        if length == _LONG:
            long = file.read(_LONG_BOX.size)
            length = _LONG_BOX.unpack(long)[0] if len(long) == _LONG_BOX.size else _TO_THE_END
        end = size + 1 if length == _TO_THE_END else place + length
        yield name, end
        if end <= place:
            return
        place = end
