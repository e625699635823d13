"""What the packets of a video file say when all are read, none decoded: keyframes and time.

Where recordings were concatenated, the clock restarts. Their packets are moved to one rising time
line before they are decoded, so that later stages need not know.
"""

import math
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from videonsa.video.demux import READ_ERRORS

WITNESSES = 4
"""Packets on both sides that must agree that time went back: single times are often damaged."""
RARE_STEPS = 20
"""How many times the usual step a jump ahead is at least."""
REORDERED = 16
"""Packets within which the first and the last picture of a recording are, in order of display."""
MOST_STAMP = 2**60
"""Timestamps beyond it are no times; sums of those within it are 64-bit integers."""
Stamps = NDArray[np.int64]


class Keyframe(NamedTuple):
    """A packet that is a keyframe, shown."""

    pts: int
    size: int
    packet: int
    """Packets before it in the file."""


class Join(NamedTuple):
    """Where the clock of a file restarts."""

    packet: int
    """Packets before it."""
    pts: int
    """The timestamp, on the one time line, at which the next recording begins."""
    shift: int
    """What to add to the timestamps from there on."""
    back: bool
    """Whether time goes back there; otherwise it jumps ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What all packets of a stream say."""

    num_packets: int
    num_frames: int
    """Packets whose pictures are shown: an edit list hides others."""
    begin: int | None
    """The first timestamp; None where pictures have none."""
    end: int | None
    """The timestamp at which the last picture leaves the screen, on the one time line."""
    keyframes: tuple[Keyframe, ...]
    joins: tuple[Join, ...]
    problem: str | None
    """Why the file cannot be cut at its keyframes, where it cannot."""
    stamps: Stamps
    """int64 [N], when each picture that is shown begins, in the order of the file."""
    last_byte: int
    """Where the packets end in the file; 0 where that is not known."""


def scan_packets(packets: "Iterable[Packet[VideoStream]]", *, gap: int | None = None) -> Scan:
    """Read packets to the end; an error ends them.

    Args:
        packets: of one stream.
        gap: the time, as timestamps count it, that cannot pass between two pictures of one
            recording; None where any may.

    """
    scanner = _Scanner(gap)
    try:
        for packet in packets:
            if packet.size > 0:
                scanner.add(packet)
    except READ_ERRORS:
        scanner.fail()
    return scanner.result()


def on_one_line(
    packets: "Iterable[Packet[VideoStream]]", joins: Iterable[Join]
) -> "Iterator[Packet[VideoStream]]":
    """The packets of a file from its beginning, moved to the time line without jumps back."""
    joins = iter(joins)
    following, shift, count = next(joins, None), 0, 0
    for packet in packets:
        if packet.size > 0:
            if following is not None and count == following.packet:
                shift = following.shift
                following = next(joins, None)
            count += 1
        if shift:
            packet.pts, packet.dts = _moved(packet.pts, shift), _moved(packet.dts, shift)
        yield packet


def on_one_line_as_read(
    packets: "Iterable[Packet[VideoStream]]", *, gap: int | None = None
) -> "Iterator[Packet[VideoStream]]":
    """`on_one_line` for packets that were not scanned: where time jumps, a few more are awaited.

    Args:
        packets: of a file from its beginning.
        gap: as for `scan_packets`.

    """
    packets = iter(packets)
    before: deque[_Times] = deque(maxlen=REORDERED)
    ahead: deque[Packet[VideoStream]] = deque()
    shift = 0
    while (packet := ahead.popleft() if ahead else next(packets, None)) is not None:
        times = _times_of(packet)
        if times is not None:
            if before and _jumps(times.order - before[-1].order, gap):
                ahead.extend(islice(packets, REORDERED - len(ahead)))
                after = [times, *(found for found in map(_times_of, ahead) if found is not None)]
                join = _join_between(before, after, gap=gap)
                if join is not None:
                    shift = _bounded(shift + join.shift)
                    before.clear()
            before.append(times)
        if shift:
            packet.pts, packet.dts = _moved(packet.pts, shift), _moved(packet.dts, shift)
        yield packet


class _Times(NamedTuple):
    """Of a packet that is shown."""

    order: int
    begin: int
    end: int


def _times_of(packet: "Packet[VideoStream]") -> _Times | None:
    """None where it shows nothing, or does not say when."""
    pts, dts = packet.pts, packet.dts
    if packet.size == 0 or pts is None or packet.is_discard:
        return None
    end = _bounded(pts + (packet.duration or 0))
    return _Times(_bounded(pts if dts is None else dts), _bounded(pts), end)


def _jumps(step: int, gap: int | None) -> bool:
    return step < 0 or (gap is not None and step > gap)


def _join_between(
    before: Iterable[_Times], after: Iterable[_Times], *, gap: int | None
) -> Join | None:
    """The join where `after` begins, if there is one."""
    first = len(before := list(before))
    order, begins, ends = np.array([*before, *after], dtype=np.int64).T
    joins = find_joins(order, begins, _stated_ends(order, begins, ends), gap=gap)
    return next((join for join in joins if join.packet == first), None)


def _stated_ends(order: Stamps, begins: Stamps, ends: Stamps) -> Stamps:
    """Ends, with a usual step in place of those that are not stated: not every format does."""
    if len(order) < 2:
        return ends
    step = int(np.median(np.abs(np.diff(order))))
    return np.where(ends > begins, ends, begins + step)


def _moved(stamp: int | None, shift: int) -> int | None:
    return None if stamp is None else _bounded(stamp + shift)


def _bounded(stamp: int) -> int:
    return max(-MOST_STAMP, min(MOST_STAMP, stamp))


class _Scanner:
    """Gathers what `Scan` holds."""

    def __init__(self, gap: int | None) -> None:
        self._gap = gap
        self._problem: str | None = None
        self._keyframes: list[Keyframe] = []
        self._num_packets = self._num_frames = 0
        # Of the packets that are shown and have times:
        self._numbers, self._order = array("q"), array("q")
        self._begins, self._ends = array("q"), array("q")
        self._last_byte = 0

    def add(self, packet: "Packet[VideoStream]") -> None:
        number, pts, dts = self._num_packets, packet.pts, packet.dts
        self._num_packets += 1
        self._num_frames += not packet.is_discard
        self._last_byte = max(self._last_byte, (packet.pos or 0) + packet.size)
        if packet.is_corrupt:
            self._problem = self._problem or "parts of it are damaged"
        if pts is None:
            self._problem = self._problem or "its pictures have no timestamps"
        elif not packet.is_discard:
            self._numbers.append(number)
            self._order.append(_bounded(pts if dts is None else dts))
            self._begins.append(_bounded(pts))
            self._ends.append(_bounded(pts + (packet.duration or 0)))
            if packet.is_keyframe:
                self._keyframes.append(Keyframe(pts, packet.size, number))

    def fail(self) -> None:
        """Say that reading ended with an error."""
        self._problem = self._problem or "parts of it cannot be read"

    def result(self) -> Scan:
        numbers, order, begins, ends = (
            np.asarray(stamps, dtype=np.int64)
            for stamps in (self._numbers, self._order, self._begins, self._ends)
        )
        ends = _stated_ends(order, begins, ends)
        found = list(find_joins(order, begins, ends, gap=self._gap))
        last = found[-1] if found else Join(0, 0, 0, back=False)
        timed = len(order) > 0
        problem = self._problem
        if any(join.back for join in found) or (
            problem is None and self._jumps_back(numbers, begins)
        ):
            problem = "its timestamps jump back"
        elif found:
            problem = "its timestamps jump ahead"
        elif problem is None and not self._keyframes:
            problem = "it states no keyframes"
        return Scan(
            num_packets=self._num_packets,
            num_frames=self._num_frames,
            begin=int(begins[: found[0].packet if found else None][:REORDERED].min())
            if timed
            else None,
            end=int(ends[last.packet :][-REORDERED:].max()) + last.shift if timed else None,
            keyframes=tuple(self._keyframes),
            joins=tuple(join._replace(packet=int(numbers[join.packet])) for join in found),
            problem=problem,
            stamps=begins,
            last_byte=self._last_byte,
        )

    def _jumps_back(self, numbers: Stamps, begins: Stamps) -> bool:
        """Whether a keyframe does not come after everything before it."""
        at = np.searchsorted(numbers, [frame.packet for frame in self._keyframes])
        at = at[at > 0]
        return bool((begins[at] <= np.maximum.accumulate(begins)[at - 1]).any())


def find_joins(
    order: Stamps, begins: Stamps, ends: Stamps, *, gap: int | None = None
) -> Iterator[Join]:
    """Where the clock of a file restarts.

    Args:
        order: int64 [N], timestamps that rise from packet to packet but for joins and damage.
        begins: int64 [N], when each packet's picture is shown.
        ends: int64 [N], when it leaves the screen.
        gap: as for `scan_packets`; recordings of few pictures may have longer ones.

    """
    steps = np.diff(order)
    jumps = steps < 0
    most = math.inf
    if gap is not None and len(steps):
        most = max(gap, RARE_STEPS * float(np.median(np.abs(steps))))
        jumps |= steps > most
    part, shift = 0, 0
    for at in (np.flatnonzero(jumps) + 1).tolist():
        before, after = order[max(part, at - WITNESSES) : at], order[at : at + WITNESSES]
        if len(after) < 2 or len(before) == 0:
            continue
        back = bool(after.max() < before.min())
        if back or after.min() > before.max() + most:
            end = int(ends[max(part, at - REORDERED) : at].max()) + shift
            part, shift = at, _bounded(end - int(begins[at : at + REORDERED].min()))
            yield Join(at, end, shift, back)
