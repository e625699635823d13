"""A video file, an image or a folder of images to sampled frames at their final size.

Workers decode parts of the time line; each wanted frame is downscaled at once, so that a clip is
never held at the size of its source.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat, takewhile
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videonsa.errors import UsageError, VideoError
from videonsa.machine import usable_cores
from videonsa.video.container import TIME_TOLERANCE, SourceFrame
from videonsa.video.gpu import GPU_NOTE
from videonsa.video.parts import Reading, SampledFrame, VideoStream
from videonsa.video.processing import resize_frames
from videonsa.video.sampling import (
    SamplingPlan,
    SamplingSpec,
    VideoInfo,
    plan_sampling,
    sampling_notes,
)
from videonsa.video.segments import Layout, nearest
from videonsa.video.source import Decoder, Source, VideoLike, open_source
from videonsa.video.workers import run_in_order

HOLD_SLACK = 0.1
"""Seconds past its stated end for which a frame is still taken where nothing decodes after it:
stated durations may count a little more audio than video."""
STALE_AFTER = 1.0
"""Seconds beyond its stated end after which a frame that is taken again is reported."""
MOST_WORKERS = 8
"""Workers that are used unless more are asked for."""
PAYING_PIXELS = 10**8
"""Pixels to decode from which more than one core pays: about a third of a second's work."""
WORKERS_BYTES = 2**30
"""Bytes that the decoders of all workers may hold, unless more workers are asked for..."""
PICTURE_BYTES = 14
"""... of which each has so many a pixel: five pictures, and one as RGB twice."""
BYTES_AHEAD = 16 * 2**20
"""Bytes of sampled frames of one segment that may wait to be taken..."""
LEAST_AHEAD = 4
"""... but so many frames, however large."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoClip:
    """Sampled frames, and where they come from."""

    frames: Tensor
    """uint8 [N, 3, H, W], RGB."""
    times: tuple[float, ...]
    """Seconds since the beginning of the video, one a frame, ascending. A frame's own time; where
    it is still on screen at a further target and taken again, that target."""
    info: VideoInfo
    plan: SamplingPlan
    """The frames that were taken; fewer than planned if some could not be decoded."""
    warnings: tuple[str, ...] = ()
    """What was lost or damaged, one line each."""
    notes: tuple[str, ...] = ()
    """Where it was not read as asked, one line each."""

    @property
    def sampled_fps(self) -> float:
        """Frames per second that the plan asked for."""
        return self.plan.sampled_fps

    @property
    def position_times(self) -> tuple[float, ...]:
        """Seconds of each frame as position ids count them (docs/semantics.md, "Positions")."""
        return self.plan.even_times or self.times


class Pick(NamedTuple):
    """The frame on screen at one target."""

    target: int
    """Its index."""
    time: float
    """Seconds: of the frame, and of the target where the frame is taken again."""
    frame: SourceFrame
    again: bool
    """The frame of the target before."""
    stale: bool
    """Taken again long after it should have left the screen: no other came."""


Span = tuple[SourceFrame, float, float]
"""A frame, and the seconds from and before which it is the one to take."""
_NO_TARGET = (-1, math.inf)


def probe(path: VideoLike) -> VideoInfo:
    """What a video, or what else `read_video` takes, holds; decodes at most one frame.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: what is no video.

    """
    return open_source(path).info


def read_video(
    path: VideoLike,
    *,
    sampling: SamplingSpec | None = None,
    workers: int | None = None,
    decoder: Decoder = "cpu",
    progress: bool | None = None,
) -> VideoClip:
    """Sample the frames of a video at their final size.

    The frame taken for a target time is the one on screen then: the last that begins at or before
    it. What does not decode is left out, and `warnings` says so. The frames are the same whatever
    the number of workers. One exception: a damaged HEVC file that is read in one part. Its decoder
    does not say which pictures are damaged, and several threads may not make them the same twice.

    Args:
        path: a video file, an image (one that is animated is a video), or a folder of images; or in
            memory a PIL image, an array or tensor [H, W, 3] of one or [N, H, W, 3] of all frames
            (or channels first), or a list of images or of their paths. Folders, lists and arrays
            are taken as 2 frames a second; a `FrameList` gives them another rate, or times.
        sampling: which frames and what size; None is `SamplingSpec()`.
        workers: threads that decode parts of the time line; None is one for each core that may be
            used, up to 8, or 1 where the video is too short for more to pay.
        decoder: "gpu" is that of an NVIDIA GPU, through torchcodec; untested so far.
        progress: a bar on stderr once the work takes over a second; None is on a terminal only.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: timestamps outside the video, or a frame shape that cannot be resized.
        BudgetError: `max_tokens` below one temporal patch.

    """
    stream = stream_video(path, sampling=sampling, workers=workers, decoder=decoder)
    reading = Reading(stream)
    with closing(reading.parts(stream.plan.num_frames, progress=progress)) as parts:
        (frames,) = parts
    return VideoClip(
        frames=frames,
        times=reading.times,
        info=stream.info,
        plan=reading.plan,
        warnings=reading.warnings,
        notes=reading.notes,
    )


def stream_video(
    path: VideoLike,
    *,
    sampling: SamplingSpec | None = None,
    workers: int | None = None,
    decoder: Decoder = "cpu",
    beside: bool = False,
) -> VideoStream:
    """What `read_video` reads, frame by frame, with few frames in memory.

    Args:
        path: as for `read_video`.
        sampling: as for `read_video`.
        workers: as for `read_video`.
        decoder: as for `read_video`.
        beside: decode while the caller does other work than to take frames; otherwise one worker
            decodes in the caller's thread, when a frame is asked for.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: as for `read_video`.
        BudgetError: as for `read_video`.

    """
    if workers is not None and not (type(workers) is int and workers >= 1):
        raise UsageError(f"workers={workers!r}: want an int of at least 1, or None")
    source = open_source(path, decoder=decoder)
    stream = stream_source(source, sampling or SamplingSpec(), workers=workers, beside=beside)
    return replace(stream, notes=(*stream.notes, GPU_NOTE)) if decoder == "gpu" else stream


def stream_source(
    source: Source, spec: SamplingSpec, *, workers: int | None = None, beside: bool = False
) -> VideoStream:
    """`stream_video`, of a source that is open."""
    plan = plan_sampling(source.info, spec)
    layout = source.layout(plan.times, keyframes=spec.mode == "keyframes")
    wanted = _paying_workers(source.info, layout) if workers is None else workers
    notes = (
        *source.info.notes,
        *sampling_notes(source.info, spec),
        *_notes(layout, plan, spec, workers=wanted),
    )
    if layout.keyframes_only:
        plan = plan.with_keyframes(layout.targets, duration=source.info.duration)
    frames = run_in_order(
        len(layout.segments),
        partial(_frame_room, source, layout, plan),
        workers=min(wanted, len(layout.segments)),
        ahead=max(LEAST_AHEAD, BYTES_AHEAD // (3 * plan.height * plan.width)),
        beside=beside,
    )
    return VideoStream(info=source.info, plan=plan, notes=notes, frames=_by_rising_time(frames))


@contextmanager
def _frame_room(
    source: Source, layout: Layout, plan: SamplingPlan, stopped: Callable[[], bool]
) -> Iterator[Callable[[int], Iterator[SampledFrame]]]:
    """What gives the sampled frames of a segment, by its number."""
    with source.reader(layout) as read:

        def run(number: int) -> Iterator[SampledFrame]:
            segment = layout.segments[number]
            frames = takewhile(lambda _: not stopped(), read(segment))
            picks = pick_frames(frames, layout.targets[segment.first : segment.last])
            return resized_picks(picks, plan, first=segment.first)

        yield run


def resized_picks(
    picks: Iterator[Pick], plan: SamplingPlan, *, first: int = 0
) -> Iterator[SampledFrame]:
    """The picked frames at their final size; targets are counted from `first`."""
    previous: tuple[SourceFrame, NDArray[np.uint8]] | None = None
    for target, time, frame, again, stale in picks:
        if previous is None or previous[0] is not frame:
            previous = None
            try:
                previous = frame, _resized(frame.rgb(), plan)
            except VideoError:
                continue
        yield SampledFrame(first + target, time, previous[1], again, stale, frame.damaged)


def _by_rising_time(
    frames: Generator[SampledFrame, None, None],
) -> Generator[SampledFrame, None, None]:
    """A frame that a segment takes again from the one before it has the time it had there."""
    latest = -math.inf
    with closing(frames):
        for frame in frames:
            latest = max(latest, frame.time)
            yield frame._replace(time=latest)


def _paying_workers(info: VideoInfo, layout: Layout) -> int:
    packets = layout.num_packets or info.num_frames or 0
    if packets * info.width * info.height < PAYING_PIXELS:
        return 1
    held = PICTURE_BYTES * info.width * info.height
    return max(1, min(usable_cores(), MOST_WORKERS, WORKERS_BYTES // held))


def _notes(
    layout: Layout, plan: SamplingPlan, spec: SamplingSpec, *, workers: int
) -> Iterator[str]:
    if layout.problem is not None and workers > 1:
        yield f"read by one worker, not {workers}: {layout.problem}"
    if spec.mode != "keyframes":
        return
    if layout.keyframes_only:
        times = layout.targets
        away = max(abs(time - times[nearest(times, time)]) for time in plan.times)
        yield (
            f"keyframes only: the nearest to {plan.num_frames} wanted times are "
            f"{len(times)}, at most {away:.2f} s away"
        )
    else:
        yield f"exact frames, not keyframes: {layout.problem}"


def pick_frames(frames: Iterator[SourceFrame], targets: Iterable[float]) -> Iterator[Pick]:
    """For each target, ascending, the last frame that begins at or before it (1 ms after counts).

    A target without a frame is left out: before the first frame, after the end, or where frames
    did not decode and the one before had left the screen by then (0.1 s is forgiven).
    """
    return pick_spans(on_screen(frames), targets)


def pick_spans(spans: Iterator[Span], targets: Iterable[float]) -> Iterator[Pick]:
    """For each target, ascending, the frame in whose span it lies; targets in none are left out.

    A target and a span are taken from their iterators only once the ones before are done with.
    """
    numbered = chain(enumerate(targets), repeat(_NO_TARGET))
    number, target = next(numbered)
    for frame, begin, end in spans:
        while target < begin:
            number, target = next(numbered)
        again = False
        while target < end:
            time = max(frame.time, target) if again else frame.time
            yield Pick(number, time, frame, again, again and time > frame.end + STALE_AFTER)
            number, target = next(numbered)
            again = True
        if target == math.inf:
            return


def on_screen(frames: Iterator[SourceFrame], *, slack: float = HOLD_SLACK) -> Iterator[Span]:
    """Each frame with the seconds from and before which it is the one to take.

    Args:
        frames: by rising time.
        slack: seconds for which the last is taken beyond its stated end.

    """
    held: SourceFrame | None = None
    begin = 0.0
    for frame in frames:
        end = frame.time - TIME_TOLERANCE
        if held is None:
            begin = frame.time - HOLD_SLACK
        else:
            yield held, begin, min(end, held.end + HOLD_SLACK) if frame.after_error else end
            begin = end
        held = frame
    if held is not None:
        yield held, begin, held.end + slack


def _resized(picture: NDArray[np.uint8], plan: SamplingPlan) -> NDArray[np.uint8]:
    """[H, W, 3] to [3, height, width]."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    resized = resize_frames(pixels[None], height=plan.height, width=plan.width)[0]
    levels: NDArray[np.uint8] = resized.numpy()
    return levels
