"""What a video file states about itself, and what is found by reading it where it does not."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from videonsa.video.demux import READ_ERRORS
from videonsa.video.timeline import Join, Scan, scan_packets

TS_DISCONT = 0x0200
"""`AVFMT_TS_DISCONT` of FFmpeg: formats whose clock may restart."""
BOUNDARY_FRAMES = 3
"""Frames by which a cut without encoding may miss the stated rate: where it cuts, frames that
refer to lost ones go too."""
MOST_STRETCH = 8
"""A stated shape of pixels beyond 8:1 or 1:8 is taken for damage: they count as square."""
END_SLACK = 1.0
"""Seconds past the stated end from which on a frame's time is taken for damage, or for more."""
LONGEST_GAP = 10.0
"""Seconds without a picture from which on another recording is taken to begin, in formats whose
clock may; it is FFmpeg's own limit."""
LEAD_SLACK = 0.1
"""Seconds by which a duration that counts from 0 may miss the end of the last picture."""
MOST_STAMPS = 1000
"""Frames of uneven times up to which each is known by its own."""
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
    stamps: tuple[int, ...] | None = None
    """When each frame begins, where that is known and matters."""
    notes: tuple[str, ...] = ()
    last_byte: int = 0
    """Where its packets end in the file; 0 where that is not known."""

    def averaged(self) -> Self:
        """The same with the rate that count and duration make."""
        if not self.num_frames or self.duration <= 0:
            return self
        return replace(self, rate=self.num_frames / self.duration)


def find_length(container: InputContainer, stream: VideoStream, scan: Callable[[], Scan]) -> Length:
    """How long a video is, as it is displayed.

    Args:
        container: the file, at any place.
        stream: its video.
        scan: reads all packets; called only where the file does not state enough.

    """
    stated = Length(
        duration=_stated_duration(container, stream),
        rate=float(stream.average_rate or stream.guessed_rate or 0),
        num_frames=stream.frames or None,
    )
    if stated.duration > 0 and _is_mp4(container) and stream.frames:
        return _indexed_length(stated, stream, scan)
    tail = _tail(container, stream, stated.duration)
    if tail is None or _is_concatenated(tail, stream, stated.duration):
        return _scanned_length(stated, stream, scan())
    duration = _without_lead(stated.duration, tail, stream)
    return replace(replace(stated, duration=duration).averaged(), last_byte=tail.last_byte)


def longest_gap(container: InputContainer, stream: VideoStream) -> int | None:
    """The gap of `scan_packets`: of formats whose clock may restart, also by jumping ahead."""
    if stream.time_base and container.format.flags & TS_DISCONT:
        return int(LONGEST_GAP / stream.time_base)
    return None


def _indexed_length(stated: Length, stream: VideoStream, scan: Callable[[], Scan]) -> Length:
    """Of an mp4, whose index lists all frames, also those that its edit list does not show."""
    entries = getattr(stream, "index_entries", None)
    if entries is None:  # PyAV before 17
        found = scan()
        shown, last_byte = found.num_frames, found.last_byte
        hides = shown < found.num_packets
    else:
        shown = sum(not entry.is_discard for entry in entries)
        last_byte = max((entry.pos + entry.size for entry in entries), default=0)
        hides = shown < len(entries)
    there = stream.frames
    if not hides and shown <= there:
        return replace(stated.averaged(), last_byte=last_byte)
    missed = abs(stated.rate * stated.duration - shown)
    uneven = missed > 1 / 2 and shown <= MOST_STAMPS
    length = replace(
        stated,
        num_frames=shown,
        stamps=tuple(np.sort(scan().stamps).tolist()) if uneven else None,
        notes=(_hidden_note(shown, there),),
        last_byte=last_byte,
    )
    return length if missed <= BOUNDARY_FRAMES else length.averaged()


def _scanned_length(stated: Length, stream: VideoStream, found: Scan) -> Length:
    notes = []
    if found.joins:
        notes.append(_join_note(found, stream))
    if found.num_frames < found.num_packets:
        notes.append(_hidden_note(found.num_frames, found.num_packets))
    exact = found.joins or found.problem is None or stated.duration <= 0
    length = replace(
        stated,
        # For such files FFmpeg guesses from the last packets.
        duration=_scanned_duration(found, stream, stated.rate) or stated.duration,
        num_frames=found.num_frames if exact else stated.num_frames,
        joins=found.joins,
        notes=tuple(notes),
        last_byte=found.last_byte,
    )
    return length.averaged()


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


def _tail(container: InputContainer, stream: VideoStream, duration: float) -> Scan | None:
    """The packets from the stated end on; None where a file states nothing useful.

    Such are live recordings, mp4s in fragments and formats made to be put one behind the other.
    """
    in_fragments = _is_mp4(container)
    if duration <= 0 or in_fragments or container.format.flags & TS_DISCONT:
        return None
    try:
        container.seek(_stated_end(stream, duration), stream=stream)
    except (*READ_ERRORS, OverflowError):
        return None
    tail = scan_packets(container.demux(stream))
    return tail if tail.num_packets else None  # without an index, seeks may land nowhere


def _is_concatenated(tail: Scan, stream: VideoStream, duration: float) -> bool:
    """Whether files were concatenated: time goes back, or on after the stated end."""
    slack = int(END_SLACK / (stream.time_base or 1))
    return bool(tail.joins) or (tail.end or 0) > _stated_end(stream, duration) + slack


def _without_lead(duration: float, tail: Scan, stream: VideoStream) -> float:
    """The stated duration, less what it counts before the first picture, as some writers do."""
    second = stream.time_base or Fraction(1)
    begin, end = float((stream.start_time or 0) * second), float((tail.end or 0) * second)
    counted = 0 < begin < duration and abs(end - duration) < min(LEAD_SLACK, begin / 2)
    return duration - begin if counted else duration


def _stated_end(stream: VideoStream, duration: float) -> int:
    return (stream.start_time or 0) + int(duration / (stream.time_base or 1))


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
    back = [join.back for join in scan.joins]
    jumps = "goes back" if all(back) else "goes back or ahead" if any(back) else "jumps ahead"
    return f"time {jumps} at {', '.join(times)}{more}: {what}"
