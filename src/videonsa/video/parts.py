"""Sampled frames as they are decoded, gathered into parts, and what was taken of the video."""

import math
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, Never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from videonsa.errors import BudgetError, VideoError
from videonsa.video.sampling import SamplingPlan, VideoInfo

PROGRESS_DELAY = 1.0
"""Seconds before the progress bar shows."""


class SampledFrame(NamedTuple):
    """One frame at its final size."""

    target: int
    """Index of the wanted time that it stands for."""
    time: float
    """Seconds, as in `VideoClip.times`."""
    pixels: NDArray[np.uint8]
    """[3, height, width], RGB."""
    again: bool
    """The frame of the wanted time before: no other begins in between."""
    stale: bool
    """Taken again long after it should have left the screen: no other came."""
    damaged: bool
    """The decoder says that parts of the picture are wrong."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoStream:
    """The sampled frames of a video while they are decoded."""

    info: VideoInfo
    plan: SamplingPlan
    """What is wanted."""
    notes: tuple[str, ...]
    """Where it is not read as asked, one line each."""
    frames: Generator[SampledFrame, None, None]
    """In order; what does not decode is left out. Closing it stops the workers."""


class _Taken(NamedTuple):
    target: int
    time: float
    again: bool
    stale: bool
    damaged: bool


class Reading:
    """A stream that is read once, in parts; it knows what was taken so far."""

    def __init__(self, stream: VideoStream) -> None:
        self.stream = stream
        self._taken: list[_Taken] = []

    def parts(self, size: int, *, progress: bool | None) -> Generator[Tensor, None, None]:
        """The frames, uint8 [n, 3, height, width] with n = `size`, but for the last part.

        Closing it closes the stream.

        Args:
            size: frames of a part.
            progress: a bar on stderr once the work takes over a second; None is on a terminal only.

        Raises:
            VideoError: no frame decodes.
            BudgetError: a part does not fit the memory.

        """
        plan, frames = self.stream.plan, self.stream.frames
        part = _room_for(min(size, plan.num_frames), plan)
        filled = 0
        with closing(frames), _progress_bar(plan.num_frames, progress) as bar:
            for frame in frames:
                bar.update(frame.target + 1 - bar.n)
                if filled == len(part):
                    yield torch.from_numpy(part)
                    part, filled = _room_for(min(size, plan.num_frames - len(self._taken)), plan), 0
                part[filled] = frame.pixels
                filled += 1
                self._taken.append(
                    _Taken(frame.target, frame.time, frame.again, frame.stale, frame.damaged)
                )
        if not filled:
            raise VideoError(
                f"{self.stream.info.path}: none of the {plan.num_frames} sampled frames decodes: "
                "want an undamaged video; copy or download it again"
            )
        yield torch.from_numpy(part[:filled])

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds of each frame taken, as in `VideoClip.times`."""
        return tuple(frame.time for frame in self._taken)

    @property
    def plan(self) -> SamplingPlan:
        """The plan of the frames taken; fewer than wanted if some could not be decoded."""
        return self.stream.plan.with_frames([frame.target for frame in self._taken])

    @property
    def position_times(self) -> tuple[float, ...]:
        """Seconds of each frame taken, as in `VideoClip.position_times`."""
        return self.plan.even_times or self.times

    @property
    def notes(self) -> tuple[str, ...]:
        """Where it was not read as asked, one line each."""
        again = sum(frame.again and not frame.stale for frame in self._taken)
        if not again or self.stream.plan.even_times is None:  # times that were given may repeat
            return self.stream.notes
        repeated = (
            f"{again} of {len(self._taken)} frames repeat the one before: "
            "it was still on screen at their times"
        )
        return (*self.stream.notes, repeated)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was lost or damaged, one line each."""
        return tuple(self._warnings())

    def _warnings(self) -> Iterator[str]:
        plan, taken = self.stream.plan, self._taken
        lost = sorted(set(range(plan.num_frames)) - {frame.target for frame in taken})
        if lost:
            first, last = plan.times[lost[0]], plan.times[lost[-1]]
            yield (
                f"{len(lost)} of {plan.num_frames} frames lost between {first:.2f} s and "
                f"{last:.2f} s: the file is damaged or ends early"
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


def _room_for(num_frames: int, plan: SamplingPlan) -> NDArray[np.uint8]:
    """[num_frames, 3, height, width]. BudgetError if that does not fit the memory."""
    # A numpy array, because torch wakes all cores to copy a frame into its place, and they then
    # spin beside the decoder: a third more CPU time, measured on 2 cores.
    shape = (num_frames, 3, plan.height, plan.width)
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        raise BudgetError(
            f"{num_frames} frames of {plan.width}x{plan.height} take "
            f"{math.prod(shape) / 1e9:.0f} GB, more than there is: "
            "take fewer (max_frames, num_frames) or smaller ones (max_pixels)"
        ) from error


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
