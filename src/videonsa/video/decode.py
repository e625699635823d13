"""A video file, an image or a folder of images to sampled frames at their final size.

Frames are decoded one after the other; each wanted one is downscaled at once, so that a clip is
never held at the size of its source.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Never, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from videonsa.errors import BudgetError, VideoError
from videonsa.video.container import TIME_TOLERANCE, SourceFrame, VideoFile
from videonsa.video.images import IMAGE_SUFFIXES, ImageFrames
from videonsa.video.processing import resize_frames
from videonsa.video.sampling import SamplingPlan, SamplingSpec, VideoInfo, plan_sampling

HOLD_SLACK = 0.1
"""Seconds that a frame stands in beyond its stated end where nothing decodes after it: stated
durations may count a little more audio than video."""
STALE_AFTER = 1.0
"""Seconds beyond its stated end after which a frame that is taken again is reported."""
PROGRESS_DELAY = 1.0
"""Seconds before the progress bar shows."""


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

    @property
    def sampled_fps(self) -> float:
        """Frames per second that the plan asked for."""
        return self.plan.sampled_fps


class Pick(NamedTuple):
    """The frame on screen at one target."""

    target: int
    """Its index."""
    time: float
    """Seconds: of the frame, and of the target where the frame is taken again."""
    frame: SourceFrame
    stale: bool
    """Taken again long after it should have left the screen: no other came."""


class _Source(Protocol):
    @property
    def info(self) -> VideoInfo: ...

    def frames(self, targets: Sequence[float]) -> Iterator[SourceFrame]: ...


def probe(path: str | Path) -> VideoInfo:
    """What a video, an image or a folder of images holds; decodes at most one frame.

    Raises:
        VideoError: nothing there that can be read.

    """
    return _open_source(path).info


def read_video(
    path: str | Path, *, sampling: SamplingSpec | None = None, progress: bool | None = None
) -> VideoClip:
    """Sample the frames of a video at their final size.

    The frame taken for a target time is the one on screen then: the last that begins at or before
    it. What does not decode is left out, and `warnings` says so.

    Args:
        path: a video file, an image or a folder of images (taken as 2 frames per second).
        sampling: which frames and what size; None is `SamplingSpec()`.
        progress: a bar on stderr once the work takes over a second; None is on a terminal only.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: timestamps outside the video, or a frame shape that cannot be resized.
        BudgetError: `max_tokens` below one temporal patch.

    """
    source = _open_source(path)
    plan = plan_sampling(source.info, sampling or SamplingSpec())
    frames = _room_for(plan)
    with _progress_bar(plan.num_frames, progress) as bar:
        picks = pick_frames(source.frames(plan.times), plan.times)
        taken = _take(picks, plan, into=frames, bar=bar)
    if not taken:
        raise VideoError(
            f"{path}: none of the {plan.num_frames} sampled frames decodes: "
            "want an undamaged video; copy or download it again"
        )
    return VideoClip(
        frames=torch.from_numpy(frames[: len(taken)]),
        times=tuple(frame.time for frame in taken),
        info=source.info,
        plan=plan.with_times(tuple(plan.times[frame.target] for frame in taken)),
        warnings=tuple(_warnings(taken, plan)),
    )


class _Taken(NamedTuple):
    """What is kept of a pick: not its frame, which has the size of the source."""

    target: int
    time: float
    stale: bool
    damaged: bool


def _take(
    picks: Iterator[Pick], plan: SamplingPlan, *, into: NDArray[np.uint8], bar: "tqdm[Never]"
) -> list[_Taken]:
    """Write the picked frames at their final size, one at a time, to the front of `into`."""
    taken: list[_Taken] = []
    previous: SourceFrame | None = None
    for target, time, frame, stale in picks:
        bar.update(target + 1 - bar.n)
        if frame is previous:
            into[len(taken)] = into[len(taken) - 1]
        else:
            try:
                into[len(taken)] = _resized(frame.rgb(), plan)
            except VideoError:
                continue
            previous = frame
        taken.append(_Taken(target, time, stale, frame.damaged))
    return taken


def pick_frames(frames: Iterator[SourceFrame], targets: Sequence[float]) -> Iterator[Pick]:
    """For each target, ascending, the last frame that begins at or before it (1 ms after counts).

    A target without a frame is left out: before the first frame, after the end, or where frames
    did not decode and the one before had left the screen by then (0.1 s is forgiven).
    """
    target = 0
    for frame, begin, end in _on_screen(frames):
        while target < len(targets) and targets[target] < begin:
            target += 1
        again = False
        while target < len(targets) and targets[target] < end:
            time = max(frame.time, targets[target]) if again else frame.time
            yield Pick(target, time, frame, again and time > frame.end + STALE_AFTER)
            target += 1
            again = True
        if target == len(targets):
            return


def _on_screen(frames: Iterator[SourceFrame]) -> Iterator[tuple[SourceFrame, float, float]]:
    """Each frame with the seconds from and before which it is the one to take."""
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
        yield held, begin, held.end + HOLD_SLACK


def _open_source(path: str | Path) -> _Source:
    path = Path(path)
    try:
        if path.is_dir():
            return ImageFrames(path)
        if not path.exists():
            raise VideoError(f"{path}: no such file: want a video, a folder of images or an image")
        # A pipe or a device may never end.
        if not path.is_file():
            raise VideoError(f"{path}: not a regular file: want a video, a folder or an image")
        with path.open("rb") as file:
            if not file.read(1):
                raise VideoError(f"{path}: an empty file: want a video; copy or download it again")
    except OSError as error:
        reason = (error.strerror or "not possible").lower()
        raise VideoError(f"{path}: cannot be read: {reason}: name one that you may read") from error
    return ImageFrames(path) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFile(path)


def _room_for(plan: SamplingPlan) -> NDArray[np.uint8]:
    """[N, 3, height, width]. BudgetError if that does not fit the memory."""
    # A numpy array, because torch wakes all cores to copy a frame into its place, and they then
    # spin beside the decoder: a third more CPU time, measured on 2 cores.
    shape = (plan.num_frames, 3, plan.height, plan.width)
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        raise BudgetError(
            f"{plan.num_frames} frames of {plan.width}x{plan.height} take "
            f"{math.prod(shape) / 1e9:.0f} GB, more than there is: "
            "take fewer (max_frames, num_frames) or smaller ones (max_pixels)"
        ) from error


def _resized(picture: NDArray[np.uint8], plan: SamplingPlan) -> NDArray[np.uint8]:
    """[H, W, 3] to [3, height, width]."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    resized = resize_frames(pixels[None], height=plan.height, width=plan.width)[0]
    levels: NDArray[np.uint8] = resized.numpy()
    return levels


def _progress_bar(num_frames: int, progress: bool | None) -> "tqdm[Never]":
    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(
        total=num_frames,
        desc="decoding",
        unit="frame",
        file=sys.stderr,
        delay=PROGRESS_DELAY,
        disable=not shown,
        leave=False,
    )


def _warnings(taken: Sequence[_Taken], plan: SamplingPlan) -> Iterator[str]:
    lost = sorted(set(range(plan.num_frames)) - {frame.target for frame in taken})
    if lost:
        yield (
            f"{len(lost)} of {plan.num_frames} frames lost between {plan.times[lost[0]]:.2f} s and "
            f"{plan.times[lost[-1]]:.2f} s: the file is damaged or ends early"
        )
    stale = [frame.time for frame in taken if frame.stale]
    if stale:
        yield (
            f"{len(stale)} of {plan.num_frames} frames repeat the one before, between "
            f"{stale[0]:.2f} s and {stale[-1]:.2f} s: the file holds no other there"
        )
    damaged = sum(frame.damaged for frame in taken)
    if damaged:
        yield f"{damaged} of {plan.num_frames} frames are damaged, and used as they decode"
