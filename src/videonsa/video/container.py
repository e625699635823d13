"""One video file through PyAV: what it states, and its frames in order of display."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from videonsa.errors import VideoError
from videonsa.video.demux import MOST_PIXELS, open_video, second_file, stream_note
from videonsa.video.describe import END_SLACK, Length, displayed_size, find_length, longest_gap
from videonsa.video.sampling import VideoInfo
from videonsa.video.timeline import Scan, on_one_line, scan_packets

TIME_TOLERANCE = 1e-3
"""Seconds. Matroska and FLV round times to milliseconds: a frame that begins this much after a
target still counts as on screen at it."""
MOST_LEVEL = 255
FULL_PIXELS = 2**25
"""Pixels beyond which a picture is scaled down as it becomes RGB: more than 8K has."""


class Orientation(NamedTuple):
    """How the stored picture becomes the displayed one: transpose, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """Read the display matrix, rounded to quarter turns; without one, nothing changes."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if not isinstance(data, SideData):
            return cls()
        # x' = a x + c y, y' = b x + d y
        a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
        transpose = abs(b) > abs(a)
        across, down = (c, b) if transpose else (a, d)
        return cls(transpose, flip_x=across < 0, flip_y=down < 0)

    @property
    def rotation(self) -> int:
        """Degrees clockwise; of a mirrored picture, what is left after mirroring it."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a picture [H, W, 3]; a view, nothing is copied."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


class SourceFrame(NamedTuple):
    """One frame of a source; its pixels are made when `rgb` is called, and only then."""

    time: float
    """Seconds since the beginning of the video."""
    end: float
    """Seconds at which, as the source states it, the frame leaves the screen."""
    after_error: bool
    """Something between the frame before and this one did not decode."""
    damaged: bool
    """The decoder says that parts of the picture are wrong."""
    rgb: Callable[[], NDArray[np.uint8]]
    """The picture, turned as displayed, [H, W, 3]; its pixels are those of the file, which need not
    be square. VideoError if it cannot be made."""


class VideoFile:
    """A video file: its `info`, and what turns its packets into frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.open() as (container, stream):
            first, _ = next(decode_packets(container.demux(stream)), (None, False))
            if first is None:
                raise VideoError(
                    f"{path}: no picture of its {stream.codec_context.name} stream decodes: want "
                    f"an undamaged video of at most {MOST_PIXELS // 10**6} megapixels; copy or "
                    "download it again"
                )
            length = find_length(container, stream, lambda: self.scan)
            self._joins = length.joins
            self.origin = stream.start_time if stream.start_time is not None else first.pts or 0
            """The timestamp at which the video begins."""
            if self._joins:
                self.origin = self.scan.begin or 0
            self._time_base = stream.time_base or Fraction(0)
            self.origin_seconds = float(self.origin * self._time_base)
            # Once, from the first frame: reading a frame's side data makes a cycle of references,
            # which keeps the frame in memory until garbage is collected.
            self._orientation = Orientation.of(first)
            self._one_of_many = stream_note(container, stream) is not None
            self.info = self._describe(container, stream, first, length)

    @property
    def peculiarity(self) -> str | None:
        """What other decoders may not handle, in words; None for an ordinary file."""
        if self._orientation != Orientation():
            return "a turned or mirrored video"
        if self._joins:
            return "recordings put one behind the other"
        return "one of several video streams" if self._one_of_many else None

    @cached_property
    def scan(self) -> Scan:
        """What all packets say; reads the file once, without decoding."""
        with self.open() as (container, stream):
            return scan_packets(container.demux(stream), gap=longest_gap(container, stream))

    def seconds(self, pts: int) -> float:
        """The time of a timestamp, since the beginning of the video."""
        return float((pts - self.origin) * self._time_base)

    def open(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        """The container, at its beginning, and its video stream."""
        return open_video(self.path)

    def packets(
        self, container: InputContainer, stream: VideoStream
    ) -> "Iterator[Packet[VideoStream]]":
        """The packets of a container that is at its beginning, on one rising time line."""
        return on_one_line(container.demux(stream), self._joins)

    def _describe(
        self,
        container: InputContainer,
        stream: VideoStream,
        first: VideoFrame,
        length: Length,
    ) -> VideoInfo:
        width, height, scaled = displayed_size(first.width, first.height, stream)
        full = _full_size(first.width, first.height)
        if full != (first.width, first.height):
            scaled.append(
                f"pictures of more than {FULL_PIXELS // 10**6} megapixels: {first.width}x"
                f"{first.height} is scaled to {full[0]}x{full[1]} as it is decoded"
            )
        if self._orientation.transpose:
            width, height = height, width
        choice, second = stream_note(container, stream), second_file(self.path, length.last_byte)
        notes, stamps = (choice, *length.notes, second, *scaled), length.stamps
        return VideoInfo(
            path=str(self.path),
            duration=length.duration,
            num_frames=length.num_frames or max(1, round(length.duration * length.rate)),
            fps=length.rate,
            width=width,
            height=height,
            rotation=self._orientation.rotation,
            codec=stream.codec_context.name,
            container=container.format.name,
            has_audio=bool(container.streams.audio),
            notes=tuple(note for note in notes if note),
            times=None if stamps is None else [self.seconds(stamp) for stamp in stamps],
        )

    def source_frames(self, decoded: Iterable[tuple[VideoFrame, bool]]) -> Iterator[SourceFrame]:
        """The frames of `decode_packets` by rising time; those misplaced by damage are left out."""
        frames = FrameMaker(
            path=self.path,
            origin=self.origin,
            fps=self.info.fps,
            latest=self.info.duration + END_SLACK,
            orientation=self._orientation,
        )
        return frames.by_rising_time(decoded)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameMaker:
    """What makes frames of the pictures that a decoder gives."""

    path: Path
    origin: int
    """The timestamp at which the video begins."""
    fps: float
    """Frames per second, for pictures that state no times of their own; 0 where unknown."""
    latest: float = math.inf
    """Seconds after which a frame's time is taken for damage."""
    orientation: Orientation

    def by_rising_time(self, decoded: Iterable[tuple[VideoFrame, bool]]) -> Iterator[SourceFrame]:
        """The frames of `decode_packets` by rising time; those misplaced by damage are left out."""
        last = -1.0
        for frame, after_error in decoded:
            time = self._time(frame, last)
            if last < time <= self.latest:
                yield self._source_frame(frame, time, after_error=after_error)
                last = time

    def _time(self, frame: VideoFrame, last: float) -> float:
        if frame.pts is None or frame.time_base is None:
            return last + 1 / self.fps if last >= 0 and self.fps > 0 else 0.0
        return float((frame.pts - self.origin) * frame.time_base)

    def _source_frame(self, frame: VideoFrame, time: float, *, after_error: bool) -> SourceFrame:
        stated = float((frame.duration or 0) * frame.time_base) if frame.time_base else 0.0
        period = 1 / self.fps if self.fps > 0 else 0.0
        return SourceFrame(
            time=time,
            end=time + max(stated, period),
            after_error=after_error,
            damaged=frame.is_corrupt,
            rgb=partial(_to_rgb, frame, self.orientation, self.path),
        )


def decode_packets(
    packets: Iterator["Packet[VideoStream]"], *, since: int | None = None
) -> Iterator[tuple[VideoFrame, bool]]:
    """Every frame that decodes, and whether something just before it did not.

    Decoders silently drop what they cannot use, so the packets that went in are checked off against
    the frames that come out, in order of display. Where decoding begins in the middle, pictures
    shown before `since` (a timestamp) lack their references: they are left out, and do not count
    as lost.
    """
    unseen: set[int] = set()
    failed = False
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            shown = packet.size > 0 and not packet.is_discard
            if packet.pts is not None and shown and _counts(packet.pts, since):
                unseen.add(packet.pts)
            frames = packet.decode()
        except (av.FFmpegError, OSError):
            # A demuxer that fails ends its generator, so this loop ends.
            failed = True
            continue
        for frame in frames:
            if frame.pts is not None:
                if not _counts(frame.pts, since):
                    continue
                failed = failed or any(pts < frame.pts for pts in unseen)
                unseen = {pts for pts in unseen if pts > frame.pts}
            yield frame, failed
            failed = False


def _counts(pts: int, since: int | None) -> bool:
    return since is None or pts >= since


def _full_size(width: int, height: int) -> tuple[int, int]:
    """The size at which a picture becomes RGB: its own, or a fraction of it."""
    parts = math.ceil(math.sqrt(width * height / FULL_PIXELS))
    return (width, height) if parts <= 1 else (max(1, width // parts), max(1, height // parts))


def _to_rgb(frame: VideoFrame, orientation: Orientation, path: Path) -> NDArray[np.uint8]:
    size = _full_size(frame.width, frame.height)
    try:
        if size != (frame.width, frame.height):
            frame = frame.reformat(*size, interpolation="AREA")
        has_alpha = any(component.is_alpha for component in frame.format.components)
        picture = frame.to_ndarray(format="rgba" if has_alpha else "rgb24")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path}: a picture of {frame.width}x{frame.height} {frame.format.name} does not "
            f"convert to RGB ({error}): convert the video, for example to h264 in mp4"
        ) from error
    levels = picture.astype(np.uint8, copy=False)
    return orientation.apply(_on_white(levels) if has_alpha else levels)


def _on_white(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend what is transparent with white, as for images: [H, W, 4] to [H, W, 3]."""
    rgb, alpha = picture[..., :3], picture[..., 3:]
    if alpha.min() == MOST_LEVEL:
        return np.ascontiguousarray(rgb)
    mixed = rgb.astype(np.uint16) * alpha + MOST_LEVEL * (MOST_LEVEL - alpha.astype(np.uint16))
    levels: NDArray[np.uint8] = ((mixed + MOST_LEVEL // 2) // MOST_LEVEL).astype(np.uint8)
    return levels
