"""The sampled frames of a source that grows, as they arrive: a recording, a folder being filled.

Up to any moment they are the frames, with the times, that `read_video` gives of the finished source
for the same wanted times (`timestamps`).
"""

import math
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Protocol

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from videonsa.errors import UsageError, VideoError
from videonsa.video.container import TIME_TOLERANCE, FrameMaker, Orientation, decode_packets
from videonsa.video.decode import Span, on_screen, pick_spans, resized_picks
from videonsa.video.demux import open_video, stream_note
from videonsa.video.describe import displayed_size, longest_gap
from videonsa.video.framelist import FOLDER_FPS, FrameList
from videonsa.video.growing import GrowingFile, GrowingFolder, Index, Pace, mp4_index
from videonsa.video.parts import SampledFrame
from videonsa.video.pictures import IMAGE_SUFFIXES
from videonsa.video.sampling import (
    DEFAULT_FPS,
    SamplingPlan,
    SamplingSpec,
    VideoInfo,
    smart_resize,
)
from videonsa.video.source import name_source
from videonsa.video.timeline import on_one_line_as_read

POLL = 0.2
"""Seconds between two looks at a source that has not grown."""
IDLE = 10.0
"""Seconds without growth after which a source counts as finished."""


class _Growing(Protocol):
    """A source that is open and may grow."""

    @property
    def info(self) -> VideoInfo:
        """What is known of it."""

    def spans(self) -> Iterator[Span]:
        """Its frames, with the seconds for which each is on screen; ends when it is finished."""

    def warnings(self) -> Iterator[str]:
        """What was not read so far, one line each."""

    def close(self) -> None:
        """Close it."""


class FollowedVideo:
    """The sampled frames of a source that may still grow: what `follow_video` gives.

    `frames` waits for the source, and ends when it is finished. Closing it closes the source.
    """

    def __init__(self, source: _Growing, spec: SamplingSpec, pace: Pace) -> None:
        self.info = source.info
        """What is known before the end: `duration` is 0, and `num_frames` None."""
        least, most = spec.pixel_range
        self.height, self.width = smart_resize(
            self.info.height,
            self.info.width,
            factor=spec.factor,
            min_pixels=least,
            max_pixels=most,
        )
        self.fps = DEFAULT_FPS if spec.fps is None else spec.fps
        """Wanted times in a second."""
        self.start = spec.start or 0.0
        """Seconds: the first wanted time."""
        self.frames = self._sampled(source, spec)
        """In order, at `height` and `width`; `target` counts the wanted times."""
        self.is_behind = True
        """The source was not waited for between the last two frames: more may be there already."""
        self._source = source
        self._pace = pace
        self._num_wanted = self._num_damaged = self._num_stale = self._num_lost = 0

    def second_of(self, frame: SampledFrame) -> float:
        """The wanted time that a frame was taken for."""
        return self.start + frame.target / self.fps

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was lost or damaged so far, one line each."""
        return tuple(self._warnings())

    def _sampled(self, source: _Growing, spec: SamplingSpec) -> Generator[SampledFrame, None, None]:
        plan = SamplingPlan(times=(), height=self.height, width=self.width, sampled_fps=self.fps)
        num_waits = 0
        try:
            picks = pick_spans(source.spans(), _wanted_times(spec, self.fps))
            for frame in resized_picks(picks, plan):
                self._num_lost += frame.target - self._num_wanted
                self._num_wanted = frame.target + 1
                self._num_damaged += frame.damaged
                self._num_stale += frame.stale
                self.is_behind = self._pace.num_waits == num_waits
                num_waits = self._pace.num_waits
                yield frame
        finally:
            source.close()

    def _warnings(self) -> Iterator[str]:
        yield from self._source.warnings()
        if self._num_lost:
            yield f"frames lost: {self._num_lost}, where the source is damaged"
        if self._num_stale:
            yield f"frames repeated: {self._num_stale}, where the source holds no other"
        if self._num_damaged:
            yield f"frames damaged: {self._num_damaged}, used as they decode"


def follow_video(
    source: str | os.PathLike[str] | FrameList,
    *,
    sampling: SamplingSpec | None = None,
    as_written: bool = False,
    poll: float = POLL,
    idle: float | None = IDLE,
) -> FollowedVideo:
    """Sample a source that grows, or a finished one, from its beginning on.

    The wanted times are start + k / fps; the frame taken for each is the one on screen then, as for
    `read_video`. Waits until the first picture is there.

    Args:
        source: a video file that can be read before it is finished (mkv, webm, ts, flv, mp4 in
            fragments, ...), or a folder of images, whose rate a `FrameList` states.
        sampling: its `fps`, `start`, `end` and the pixels of a frame; None is `SamplingSpec()`.
            The limits of frames and tokens of a whole video do not apply.
        as_written: images have the times at which they were last written, not those of a rate.
        poll: seconds between two looks at a source that has not grown.
        idle: seconds without growth after which the source counts as finished; None is never.

    Raises:
        VideoError: nothing there that can be read, or that can be read before it is finished.
        UsageError: sampling by a number of frames or by timestamps, or other arguments outside
            their domain.

    """
    spec = _checked(SamplingSpec() if sampling is None else sampling)
    if not 0 < poll < math.inf or (idle is not None and not idle >= 0):
        raise UsageError(f"poll={poll!r} and idle={idle!r}: want seconds, above 0 and at least 0")
    path, rate = locate_growing(source, as_written=as_written)
    pace = Pace(poll=poll, idle=idle)
    growing: _Growing = (
        GrowingFolder(path, pace, fps=rate) if path.is_dir() else _GrowingVideo(path, pace)
    )
    return FollowedVideo(growing, spec, pace)


def locate_growing(
    source: str | os.PathLike[str] | FrameList, *, as_written: bool = False
) -> tuple[Path, float | None]:
    """What is to be followed, and how many images a second a folder stands for.

    Refuses, without waiting, what `follow_video` would refuse; it explains arguments and errors.
    """
    if isinstance(source, str) and "://" in source and not os.path.exists(source):
        raise VideoError(
            f"{source}: an address, not a file: want a file that grows; record it to one, for "
            f"example by ffmpeg -i {source} -c copy live.ts"
        )
    named = name_source(source)
    path = named.folder if isinstance(named, FrameList) else named
    if not isinstance(path, Path):
        raise UsageError(f"{named}: nothing that grows: want a video file or a folder of images")
    if path.is_dir():
        rate = named.fps if isinstance(named, FrameList) else FOLDER_FPS
        return path, None if as_written else rate
    _check_file(path)
    if isinstance(named, FrameList) or as_written:
        raise UsageError(f"{path}: a file with times for images: want a folder, or leave them out")
    return path, None


class _GrowingVideo:
    """A video file that may grow."""

    def __init__(self, path: Path, pace: Pace) -> None:
        self._path = path
        self._stack = ExitStack()
        self._failed_after: float | None = None
        # The index of a whole mp4 may follow its pictures: it needs a file that can be sought in.
        file = None if _index_of(path, pace) == "whole" else GrowingFile(path, pace)
        self._file = file
        try:
            if file is not None:
                self._stack.callback(file.close)
            self._open(path, file)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: Path, file: GrowingFile | None) -> None:
        try:
            container, stream = self._stack.enter_context(open_video(path, file))
        except VideoError as error:
            self._check()
            if file is not None and file.is_empty:
                raise VideoError(
                    f"{path}: an empty file, and nothing was written to it: want a recording that "
                    "has begun, or wait longer (idle)"
                ) from error
            raise
        # Threads would each hold back a picture.
        stream.codec_context.thread_count = 1
        decoded = decode_packets(self._packets(container, stream))
        first = next(decoded, None)
        self._check()
        if first is None:
            raise VideoError(
                f"{path}: no picture of its {stream.codec_context.name} stream decodes: want a "
                "video, from its beginning"
            )
        self._decoded = chain([first], decoded)
        picture = first[0]
        orientation = Orientation.of(picture)
        width, height, notes = displayed_size(picture.width, picture.height, stream)
        if orientation.transpose:
            width, height = height, width
        choice = stream_note(container, stream)
        self.info = VideoInfo(
            path=str(path),
            duration=0.0,
            num_frames=None,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            width=width,
            height=height,
            rotation=orientation.rotation,
            codec=stream.codec_context.name,
            container=container.format.name,
            has_audio=bool(container.streams.audio),
            notes=tuple(notes if choice is None else [choice, *notes]),
        )
        self._maker = FrameMaker(
            path=path,
            origin=stream.start_time if stream.start_time is not None else picture.pts or 0,
            fps=self.info.fps,
            orientation=orientation,
        )

    def spans(self) -> Iterator[Span]:
        """Its frames, with the seconds for which each is on screen."""
        yield from on_screen(self._maker.by_rising_time(self._decoded), slack=-TIME_TOLERANCE)
        self._check()

    def warnings(self) -> Iterator[str]:
        """Why it was not read to its end, where it was not."""
        if self._file is not None and self._file.warning is not None:
            yield self._file.warning

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def _check(self) -> None:
        if self._file is not None:
            self._file.check()

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> "Iterator[Packet[VideoStream]]":
        gap = longest_gap(container, stream)
        for packet in on_one_line_as_read(container.demux(stream), gap=gap):
            self._check()  # before the decoder is emptied as at the end of a video
            yield packet


def _checked(spec: SamplingSpec) -> SamplingSpec:
    for name in ("num_frames", "timestamps"):
        if getattr(spec, name) is not None:
            raise UsageError(f"{name} of a source that grows: want fps, its end is not known")
    if spec.mode != "exact":
        raise UsageError(f"mode={spec.mode!r} of a source that grows: want 'exact'")
    return spec


def _wanted_times(spec: SamplingSpec, fps: float) -> Iterator[float]:
    """Seconds; without end where the sampling states none."""
    begin, end = spec.start or 0.0, math.inf if spec.end is None else spec.end
    return takewhile(lambda time: time < end, (begin + k / fps for k in count()))


def _check_file(path: Path) -> None:
    """Refuses what cannot grow, or cannot be read while it does."""
    if not path.exists():
        raise VideoError(
            f"{path}: no such file: want a video that is being written, or a folder of images; "
            "start the recording first"
        )
    if not path.is_file():
        raise VideoError(f"{path}: not a regular file: want a video or a folder of images")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise VideoError(f"{path}: an image: want a video, or the folder that images come to")
    if mp4_index(path) == "missing":
        raise VideoError(
            f"{path}: an mp4 that gets its index when it is finished, and cannot be read before: "
            "record mkv, ts, or mp4 in fragments (ffmpeg -movflags +frag_keyframe+empty_moov)"
        )


def _index_of(path: Path, pace: Pace) -> Index:
    """Whether the index of an mp4 is there; waits until that is known."""
    while (index := mp4_index(path)) == "not yet":
        if not pace.wait(path.stat().st_mtime):
            break
    _check_file(path)
    return index
