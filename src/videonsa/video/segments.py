"""How the time line of a video is cut for reading: pure rules, no file is opened.

The cuts follow from the file and the wanted times alone, never from the number of workers, so that
any number of them decodes the same packets in the same order.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

LEAST_PACKETS = 64
"""Packets below which a segment takes in its neighbour: each segment costs a few frames that are
decoded twice."""
MOST_SEGMENTS = 128
"""About how many parts a video that is wanted whole is cut into; more share out more evenly."""


class Cut(NamedTuple):
    """A keyframe: decoding may begin there."""

    pts: int
    """Its timestamp."""
    time: float
    """Seconds since the beginning of the video."""
    size: int
    """Bytes of its packet."""
    packet: int
    """Packets before it in the file."""


class Segment(NamedTuple):
    """Groups of pictures that one worker decodes in one go, for the targets within them."""

    begin: int
    """The cut at which it begins; 0 is the beginning of the file, whatever stands there."""
    end: int
    """The cut before which it ends; the number of cuts is the end of the file."""
    first: int
    """Its first target."""
    last: int
    """One past its last target."""
    packets: int
    """Packets from `begin` to `end`, in the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What is read, and in which parts."""

    targets: tuple[float, ...]
    """Seconds, ascending."""
    segments: tuple[Segment, ...]
    """In order; together they hold every target once."""
    cuts: tuple[Cut, ...] = ()
    keyframes_only: bool = False
    """The targets are keyframes: nothing else is decoded."""
    problem: str | None = None
    """Why the file cannot be cut, where it cannot."""

    @property
    def num_packets(self) -> int:
        """Packets that are decoded."""
        return len(self.targets) if self.keyframes_only else sum(s.packets for s in self.segments)


def whole_layout(targets: Sequence[float], *, problem: str | None = None) -> Layout:
    """The whole file in one part."""
    whole = Segment(begin=0, end=0, first=0, last=len(targets), packets=0)
    return Layout(targets=tuple(targets), segments=(whole,), problem=problem)


def cut_layout(
    cuts: Sequence[Cut], targets: Sequence[float], *, num_packets: int, tolerance: float
) -> Layout:
    """The groups of pictures that hold a target, neighbours together up to a size.

    Args:
        cuts: by rising time; the first is the beginning of the file.
        targets: seconds, ascending.
        num_packets: of the file.
        tolerance: seconds; a keyframe that begins this much after a target is on screen at it.

    """
    begins = [-math.inf, *(cut.time for cut in cuts[1:])]
    starts = [0, *(cut.packet for cut in cuts[1:]), num_packets]
    groups = [bisect.bisect_right(begins, target + tolerance) - 1 for target in targets]
    wanted = sum(starts[group + 1] - starts[group] for group in set(groups))
    most = max(LEAST_PACKETS, wanted // MOST_SEGMENTS)
    segments: list[Segment] = []
    for group, members in groupby(range(len(groups)), key=groups.__getitem__):
        last = segments[-1] if segments else None
        begin, first = group, next(members)
        if last is not None and last.end == group and last.packets < most:
            begin, first = last.begin, last.first
            segments.pop()
        end, after = group + 1, bisect.bisect_right(groups, group)
        segments.append(Segment(begin, end, first, after, starts[end] - starts[begin]))
    return Layout(targets=tuple(targets), segments=tuple(segments), cuts=tuple(cuts))


def keyframe_layout(cuts: Sequence[Cut], targets: Sequence[float]) -> Layout:
    """The keyframe nearest to each target (the earlier of two), each once."""
    times = [cut.time for cut in cuts]
    chosen = sorted({nearest(times, target) for target in targets})
    return Layout(
        targets=tuple(times[cut] for cut in chosen),
        segments=tuple(
            Segment(begin=cut, end=cut + 1, first=index, last=index + 1, packets=1)
            for index, cut in enumerate(chosen)
        ),
        cuts=tuple(cuts),
        keyframes_only=True,
    )


def nearest(times: Sequence[float], target: float) -> int:
    """Which of `times`, ascending, is nearest to the target; the earlier of two."""
    after = bisect.bisect_right(times, target)
    candidates = range(max(0, after - 1), min(after + 1, len(times)))
    return min(candidates, key=lambda index: abs(times[index] - target))
