"""Reads videos in a process of its own, so that one that hangs or crashes costs nothing else."""

import os
from dataclasses import replace

import torch

from videonsa.data.isolated import CallFailed, IsolatedCaller
from videonsa.errors import VideoError
from videonsa.evals.field.read_frames import read_frames
from videonsa.inference.encoded_clip import Video
from videonsa.video.sampling import SamplingSpec


class IsolatedReader:
    """Reads what a path names in the other process; what is in memory is given back as it is.

    Args:
        deadline: seconds that a video may take.
    """

    def __init__(self, *, deadline: float) -> None:
        self._call = IsolatedCaller(deadline=deadline)
        self._given_up: dict[tuple[str, SamplingSpec], str] = {}

    def __call__(self, source: Video, sampling: SamplingSpec) -> Video:
        """The frames of a video, as a clip.

        Raises:
            VideoError: it cannot be read, was not read in time, or ended the process that read it.
                One that hung or crashed is not tried again.
        """
        if not isinstance(source, str | os.PathLike):
            return source
        tried = os.fsdecode(source), sampling
        if tried in self._given_up:
            raise VideoError(self._given_up[tried])
        try:
            read = self._call(read_frames, source, sampling)
        except CallFailed as failure:
            reason = failure.reason
            if failure.kind != "broken":
                reason = f"{tried[0]}: {reason}: want a video that can be read; convert it"
                self._given_up[tried] = reason
            raise VideoError(reason) from failure
        return replace(read.clip, frames=torch.from_numpy(read.pixels))

    def close(self) -> None:
        """End the other process; the next video starts another."""
        self._call.close()
