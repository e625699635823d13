"""One video file through PyAV: what it states, and its frames in order of display."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from videonsa.errors import VideoError
from videonsa.video.sampling import VideoInfo

TIME_TOLERANCE = 1e-3
"""Seconds. Matroska and FLV round times to milliseconds: a frame that begins this much after a
target still counts as on screen at it."""
END_SLACK = 1.0
"""Seconds past the stated end from which on a frame's time is taken for damage."""
_OPTIONS = {"protocol_whitelist": "file"}
"""A playlist named like a video must not make us open network addresses."""
_TEXT_FORMATS = {"tty"}
"""Demuxers that show any text as a film."""


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
    """The picture as displayed, [H, W, 3]. VideoError if it cannot be made."""


class VideoFile:
    """A video file: its `info`, and what turns its packets into frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open_video(path) as (container, stream):
            first, _ = next(decode_packets(container.demux(stream)), (None, False))
            if first is None:
                raise VideoError(
                    f"{path}: no picture of its {stream.codec_context.name} stream decodes: "
                    "want an undamaged video; copy or download it again"
                )
            self.origin = stream.start_time if stream.start_time is not None else first.pts or 0
            """The timestamp at which the video begins."""
            self.origin_seconds = float(self.origin * (stream.time_base or 0))
            # Once, from the first frame: asking a frame for its side data ties it into a cycle of
            # references, which would keep it in memory until the garbage collector comes.
            self._orientation = Orientation.of(first)
            self.info = _describe(path, container, stream, first, self._orientation)

    @property
    def is_turned(self) -> bool:
        """Whether the displayed picture is the stored one turned or mirrored."""
        return self._orientation != Orientation()

    def open(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        """The container, at its beginning, and its video stream."""
        return _open_video(self.path)

    def source_frames(self, decoded: Iterable[tuple[VideoFrame, bool]]) -> Iterator[SourceFrame]:
        """What `decode_packets` gives, by rising time; frames that damage has misplaced are out."""
        last = -1.0
        for frame, after_error in decoded:
            time = self._time(frame, last)
            if last < time <= self.info.duration + END_SLACK:
                yield self._source_frame(frame, time, after_error=after_error)
                last = time

    def _time(self, frame: VideoFrame, last: float) -> float:
        if frame.pts is None or frame.time_base is None:
            return last + 1 / self.info.fps if last >= 0 and self.info.fps > 0 else 0.0
        return float((frame.pts - self.origin) * frame.time_base)

    def _source_frame(self, frame: VideoFrame, time: float, *, after_error: bool) -> SourceFrame:
        stated = float(frame.duration * frame.time_base) if frame.time_base else 0.0
        period = 1 / self.info.fps if self.info.fps > 0 else 0.0
        return SourceFrame(
            time=time,
            end=time + max(stated, period),
            after_error=after_error,
            damaged=frame.is_corrupt,
            rgb=partial(_to_rgb, frame, self._orientation, self.path),
        )


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        container = av.open(f"file:{path}", "r", container_options=_OPTIONS)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(_why_not_open(path, error)) from error
    with container:
        if container.format.name in _TEXT_FORMATS:
            raise VideoError(f"{path}: a text file: want a video, a folder of images or an image")
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        if not streams:
            held = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
            raise VideoError(
                f"{path}: no video stream (it holds {', '.join(held)}): want a file with moving "
                "pictures; if it should be one, it was cut off: copy or download it again"
            )
        if streams[0].codec_context is None:
            raise VideoError(
                f"{path}: its video codec is unknown to PyAV {av.__version__}: "
                "convert it, for example to h264 in mp4"
            )
        yield container, streams[0]


def decode_packets(
    packets: Iterator["Packet[VideoStream]"], *, since: int | None = None
) -> Iterator[tuple[VideoFrame, bool]]:
    """Every frame that decodes, and whether something just before it did not.

    Decoders drop what they cannot use without a word, so the packets that went in are checked off
    against the frames that come out, which they do in order of display. Where decoding begins in
    the middle, pictures shown before `since` (a timestamp) lack what they refer to: they are left
    out, and not missed.
    """
    unseen: set[int] = set()
    failed = False
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            if packet.pts is not None and packet.size > 0 and _counts(packet.pts, since):
                unseen.add(packet.pts)
            frames = packet.decode()
        except (av.FFmpegError, OSError):
            # A demuxer that fails ends its generator, so this cannot go on for ever.
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


def _why_not_open(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(8)
    if head[4:] == b"ftyp":
        return (
            f"{path}: an mp4 without a usable index ({reason}): want a whole file; it was probably "
            "cut off, so copy or download it again"
        )
    return (
        f"{path}: not a video that can be opened ({reason}): "
        "want mp4, mkv, webm, avi, mov, gif, a folder of images or an image"
    )


def _describe(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    first: VideoFrame,
    orientation: Orientation,
) -> VideoInfo:
    num_frames = stream.frames or None
    duration = _stated_duration(container, stream)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if duration <= 0:
        duration, num_frames = _scan(path, rate)
    if num_frames and duration > 0:
        rate = num_frames / duration
    size = (first.width, first.height)
    width, height = size[::-1] if orientation.transpose else size
    return VideoInfo(
        path=str(path),
        duration=duration,
        num_frames=num_frames or max(1, round(duration * rate)),
        fps=rate,
        width=width,
        height=height,
        rotation=orientation.rotation,
        codec=stream.codec_context.name,
        container=container.format.name,
        has_audio=bool(container.streams.audio),
    )


def _stated_duration(container: InputContainer, stream: VideoStream) -> float:
    """Seconds of the video stream, else of the container; 0 where the file does not say."""
    if stream.duration and stream.time_base:
        return max(0.0, float(stream.duration * stream.time_base))
    # Matroska states the container's duration, audio included, and the stream's own as a tag.
    hours, minutes, seconds = (stream.metadata.get("DURATION", "") + "::").split(":")[:3]
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return max(0.0, (container.duration or 0) / av.time_base)


def _scan(path: Path, rate: float) -> tuple[float, int | None]:
    """Seconds and frames, by reading (not decoding) the whole file: live recordings state none."""
    count, begin, end = 0, None, 0.0
    with _open_video(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                count += packet.size > 0
                if packet.pts is not None:
                    time = float(packet.pts * packet.time_base)
                    begin = time if begin is None else min(begin, time)
                    end = max(end, time + float((packet.duration or 0) * packet.time_base))
        except (av.FFmpegError, OSError):
            pass  # What could be read counts.
    if begin is not None and end > begin:
        return end - begin, count
    return (count / rate if rate > 0 and count > 1 else 0.0), count


def _to_rgb(frame: VideoFrame, orientation: Orientation, path: Path) -> NDArray[np.uint8]:
    try:
        picture = frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path}: a picture of {frame.width}x{frame.height} {frame.format.name} does not "
            f"convert to RGB ({error}): convert the video, for example to h264 in mp4"
        ) from error
    return orientation.apply(picture.astype(np.uint8, copy=False))
