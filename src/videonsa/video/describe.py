"""What a video file states about itself, and what is found by reading it where it does not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from videonsa.video.timeline import Join, Scan

TS_DISCONT = 0x0200
"""`AVFMT_TS_DISCONT` of FFmpeg: formats whose clock may begin anew."""
BOUNDARY_FRAMES = 3
"""Frames by which a cut without encoding may miss the stated rate: where it cuts, frames that
refer to lost ones go too."""
MOST_STRETCH = 8
"""Pixels of a shape beyond 8:1 or 1:8 are taken for damage, and for square."""
SOME_JOINS = 3
"""Times that are named where a file has many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How long a video is."""

    duration: float
    """Seconds."""
    rate: float
    """Frames per second, on average."""
    num_frames: int | None
    """None where the file does not say."""
    joins: tuple[Join, ...] = ()
    notes: list[str] = field(default_factory=list)


def find_length(container: InputContainer, stream: VideoStream, scan: Callable[[], Scan]) -> Length:
    """How long a video is, as it is displayed.

    Args:
        container: the file.
        stream: its video.
        scan: reads all packets; called only where the file does not state enough.

    """
    duration, num_frames = _stated_duration(container, stream), stream.frames or None
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    shown = _shown_frames(container, stream, scan)
    if num_frames and shown is not None:
        cut = abs(rate * duration - shown) <= BOUNDARY_FRAMES
        return Length(
            duration=duration,
            rate=rate if cut or duration <= 0 else shown / duration,
            num_frames=shown,
            notes=[_hidden_note(shown, num_frames)],
        )
    joins: tuple[Join, ...] = ()
    notes = []
    if duration <= 0 or _clock_may_begin_anew(container, stream):
        found = scan()
        joins = found.joins
        if joins or found.problem is None or duration <= 0:
            num_frames = found.num_frames
        # What FFmpeg states of such files is a guess by the last packets.
        duration = _scanned_duration(found, stream, rate) or duration
        if joins:
            notes.append(_join_note(found, stream))
        if found.num_frames < found.num_packets:
            notes.append(_hidden_note(found.num_frames, found.num_packets))
    if num_frames and duration > 0:
        rate = num_frames / duration
    return Length(duration=duration, rate=rate, num_frames=num_frames, joins=joins, notes=notes)


def displayed_size(width: int, height: int, stream: VideoStream) -> tuple[int, int, list[str]]:
    """Width and height with square pixels, and what to say of that."""
    shape = stream.sample_aspect_ratio or Fraction(1)
    if shape == 1:
        return width, height, []
    stated = f"pixels of {shape.numerator}:{shape.denominator}"
    if not 1 <= max(shape, 1 / shape) <= MOST_STRETCH:
        return width, height, [f"{stated} are stated, and taken for square"]
    wide = max(1, round(width * shape))
    return wide, height, [f"{stated}: {width}x{height} is scaled to {wide}x{height}, as displayed"]


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


def _scanned_duration(scan: Scan, stream: VideoStream, rate: float) -> float:
    if scan.begin is not None and scan.end is not None and scan.end > scan.begin:
        return float((scan.end - scan.begin) * (stream.time_base or 0))
    return scan.num_frames / rate if rate > 0 and scan.num_frames > 1 else 0.0


def _shown_frames(
    container: InputContainer, stream: VideoStream, scan: Callable[[], Scan]
) -> int | None:
    """Frames of an mp4 that its edit list shows; None without one that hides or repeats any."""
    if not _is_mp4(container) or not stream.frames:
        return None
    entries = getattr(stream, "index_entries", None)
    if entries is None:  # PyAV before 17
        shown = scan().num_frames
        return shown if shown < stream.frames else None
    hidden = sum(entry.is_discard for entry in entries)
    return len(entries) - hidden if hidden or len(entries) > stream.frames else None


def _clock_may_begin_anew(container: InputContainer, stream: VideoStream) -> bool:
    """Formats that are made to be put one behind the other; an mp4 of fragments is one."""
    fragments = _is_mp4(container) and not stream.frames
    return fragments or bool(container.format.flags & TS_DISCONT)


def _is_mp4(container: InputContainer) -> bool:
    return "mp4" in container.format.name.split(",")


def _hidden_note(shown: int, num_frames: int) -> str:
    return f"an edit list shows {shown} of the {num_frames} frames in the file"


def _join_note(scan: Scan, stream: VideoStream) -> str:
    begin, second = scan.begin or 0, stream.time_base or Fraction(0)
    times = [f"{float((join.pts - begin) * second):.2f} s" for join in scan.joins[:SOME_JOINS]]
    more, what = "", "the second part follows the first"
    if len(scan.joins) > 1:
        what = "each part follows the one before"
    if len(scan.joins) > SOME_JOINS:
        more = f" and {len(scan.joins) - SOME_JOINS} times more"
    return f"time goes back at {', '.join(times)}{more}: {what}"
