"""Segments of a video file to frames: finds its keyframes, seeks to them, decodes from there."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from videonsa.machine import usable_cores
from videonsa.video.container import TIME_TOLERANCE, SourceFrame, VideoFile, decode_packets
from videonsa.video.demux import READ_ERRORS, picture_bytes
from videonsa.video.segments import (
    Cut,
    Layout,
    Segment,
    cut_layout,
    keyframe_layout,
    whole_layout,
)

SEEK_LEADS = (0, 1, 4)
"""Seek to so many cuts before the wanted one: without an index, seeks may land too late."""
THREADS_BYTES = 2**28
"""Bytes of the pictures that the threads of one decoder hold, one each."""
Decoded = Generator[tuple[VideoFrame, bool], None, None]


class VideoSource:
    """A video file whose segments can be read independently of each other."""

    def __init__(self, path: Path) -> None:
        self._file = VideoFile(path)
        self.info = self._file.info

    def layout(self, targets: Sequence[float], *, keyframes: bool) -> Layout:
        """Where to cut for `targets`, or for the keyframes nearest to them.

        Reads the packets of the whole file, without decoding them. `problem` of the layout says
        why a file is read in one go; its targets are then taken as they are.
        """
        scan = self._file.scan
        if scan.problem is not None:
            return whole_layout(targets, problem=scan.problem)
        cuts = [
            Cut(frame.pts, self._file.seconds(frame.pts), frame.size, frame.packet)
            for frame in scan.keyframes
        ]
        if keyframes:
            layout = keyframe_layout(cuts, targets)
        else:
            layout = cut_layout(
                cuts, targets, num_packets=scan.num_packets, tolerance=TIME_TOLERANCE
            )
        problem = self._why_not_cut(layout)
        return layout if problem is None else whole_layout(targets, problem=problem)

    @contextmanager
    def reader(self, layout: Layout) -> Iterator[Callable[[Segment], Iterator[SourceFrame]]]:
        """What reads segments of a layout; for one thread, in any order, one after the other."""
        with ExitStack() as stack:
            yield _Reader(self._file, layout, stack).frames

    def _why_not_cut(self, layout: Layout) -> str | None:
        """Try one cut, in the middle: what a file states about itself is often wrong."""
        segment = layout.segments[len(layout.segments) // 2]
        if segment.begin == 0:
            return None
        with ExitStack() as stack:
            reader = _Reader(self._file, layout, stack)
            if not reader.begins_at_keyframe(segment):
                return "its keyframes do not decode on their own"
            return "it cannot be sought in" if reader.seeks_missed else None


class _Reader:
    """One open container."""

    def __init__(self, file: VideoFile, layout: Layout, stack: ExitStack) -> None:
        self._file = file
        self._layout = layout
        self._stack = stack
        self._open: tuple[InputContainer, VideoStream] | None = None
        self._lead = 0
        """Which of the leads to try first: the one that landed the last time."""
        self.seeks_missed = False
        """A seek landed nowhere useful: the file was read from its beginning instead."""
        self._one_thread = len(layout.segments) > 1
        """Whether a decoder has one thread: the workers are the threads, or a picture is damaged.

        From damaged packets, the threads of one decoder make pictures that depend on their number
        and on which of them is faster.
        """

    def frames(self, segment: Segment) -> Iterator[SourceFrame]:
        """Frames of a segment by rising time, and the one after it, which says when it ends."""
        return self._file.source_frames(self._decoded(segment))

    def begins_at_keyframe(self, segment: Segment) -> bool:
        """Whether the first frame that decodes is the segment's keyframe, so that all after it do.

        Not so where pictures refresh bit by bit, or where the file calls other frames keyframes.
        """
        with closing(self._span(segment, begin=segment.begin)) as span:
            return self._is_start(next(span, None), self._layout.cuts[segment.begin])

    def _decoded(self, segment: Segment) -> Decoded:
        if not self._one_thread:
            return self._in_one_go(segment)
        return self._from_keyframe(segment)

    def _in_one_go(self, segment: Segment) -> Decoded:
        """By several threads up to the first damaged frame, then by one, from the beginning."""
        whole = 0
        with closing(self._span(segment, begin=segment.begin)) as span:
            for frame, after_error in span:
                if after_error or frame.is_corrupt:
                    break
                whole += 1
                yield frame, after_error
            else:
                return
        self._one_thread = True
        yield from islice(self._span(segment, begin=segment.begin), whole, None)

    def _from_keyframe(self, segment: Segment) -> Decoded:
        span = self._span(segment, begin=segment.begin)
        if segment.begin == 0 or self._layout.keyframes_only:
            yield from span
            return
        first = next(span, None)
        if not self._is_start(first, self._layout.cuts[segment.begin]):
            # The keyframe is damaged: what is on screen instead comes from the group before it.
            span.close()
            first, span = None, self._span(segment, begin=segment.begin - 1)
        if first is not None:
            yield first
        del first
        yield from span

    def _is_start(self, decoded: tuple[VideoFrame, bool] | None, cut: Cut) -> bool:
        return decoded is not None and decoded[0].key_frame and decoded[0].pts == cut.pts

    def _span(self, segment: Segment, *, begin: int) -> Decoded:
        """Frames from one cut to the first that is not before the end of the segment."""
        cuts, alone = self._layout.cuts, self._layout.keyframes_only
        packets = self._packets_from(begin)
        if alone:
            packets = islice(packets, 1)
        end, limit = (
            cuts[place].pts if place < len(cuts) else None
            for place in (segment.end, segment.end + 1)
        )
        since = cuts[begin].pts if begin > 0 or alone else None
        for frame, after_error in decode_packets(self._until(limit, packets), since=since):
            yield frame, after_error
            if end is not None and frame.pts is not None and frame.pts >= end:
                return

    def _until(
        self, limit: int | None, packets: Iterator["Packet[VideoStream]"]
    ) -> Iterator["Packet[VideoStream]"]:
        """Packets before the keyframe at `limit`, then the one that empties the decoder.

        Frames end well before `limit` unless the keyframe before it is lost.
        """
        for packet in packets:
            if packet.size == 0:
                break
            if limit is not None and packet.is_keyframe and packet.pts == limit:
                break
            yield packet
        flush = cast("Packet[VideoStream]", Packet())
        flush.stream = stream = self._opened()[1]
        # The frames that are still in the decoder come out with the time base of this packet.
        flush.time_base = stream.time_base or Fraction(1, av.time_base)
        yield flush

    def _packets_from(self, begin: int) -> Iterator["Packet[VideoStream]"]:
        """Packets of the file from a cut on."""
        if begin == 0 and not self._layout.keyframes_only:
            return self._file.packets(*self._reopened())
        cuts = self._layout.cuts
        for lead in range(self._lead, len(SEEK_LEADS)):
            place = begin - SEEK_LEADS[lead]
            if place <= 0:
                break
            container, stream = self._opened()
            with suppress(*READ_ERRORS):
                container.seek(cuts[place].pts, stream=stream)
                packets = _find(cuts[begin], container.demux(stream))
                if packets is not None:
                    self._lead = lead
                    return packets
        # Reading is a hundred times faster than decoding: this costs much only if it is the rule.
        self.seeks_missed = self.seeks_missed or begin > max(SEEK_LEADS)
        container, stream = self._reopened()
        return _find(cuts[begin], container.demux(stream)) or iter(())

    def _opened(self) -> tuple[InputContainer, VideoStream]:
        return self._open if self._open is not None else self._reopened()

    def _reopened(self) -> tuple[InputContainer, VideoStream]:
        self._stack.close()
        self._open = self._stack.enter_context(self._file.open())
        stream = self._open[1]
        if self._one_thread:
            stream.codec_context.thread_count = 1
        else:
            stream.thread_type = "AUTO"
            # Each thread holds pictures of its own.
            most = max(1, THREADS_BYTES // max(1, picture_bytes(stream)))
            if most < usable_cores():
                stream.thread_count = most
        return self._open


def _find(
    cut: Cut, packets: Iterator["Packet[VideoStream]"]
) -> "Iterator[Packet[VideoStream]] | None":
    """The packets from a cut on; None if they begin after it."""
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None:
            if packet.pts == cut.pts and packet.size == cut.size:
                return chain([packet], packets)
            if packet.pts > cut.pts:
                return None
    return None
