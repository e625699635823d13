"""What can stand for a video: a file, a folder, images, or a clip that is read already."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from videonsa.errors import UsageError
from videonsa.video.decode import VideoClip, probe, read_video
from videonsa.video.images import FOLDER_FPS
from videonsa.video.processing import resize_frames
from videonsa.video.sampling import SamplingPlan, SamplingSpec, VideoInfo, plan_sampling

Video = str | Path | Sequence[str | Path] | VideoClip


def plan_clip(video: Video, sampling: SamplingSpec) -> SamplingPlan:
    """The frames that `read_clip` will take, from the header alone."""
    if isinstance(video, VideoClip):
        return video.plan
    info = probe(video) if isinstance(video, str | Path) else _images_info(video)
    return plan_sampling(info, sampling)


def read_clip(video: Video, sampling: SamplingSpec, *, progress: bool | None = None) -> VideoClip:
    """The frames of a video at their final size.

    A list of images counts as a folder of them does: two frames a second, all in the shape of the
    first.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: an empty list, or timestamps outside the video.
        BudgetError: `max_tokens` below one temporal patch.

    """
    if isinstance(video, VideoClip):
        return video
    if isinstance(video, str | Path):
        return read_video(video, sampling=sampling, progress=progress)
    info = _images_info(video)
    plan = plan_sampling(info, sampling)
    pixels = plan.height * plan.width
    one = replace(
        sampling,
        fps=None,
        num_frames=1,
        timestamps=None,
        mode="exact",
        max_tokens=None,
        min_pixels=pixels,
        max_pixels=pixels,
    )
    frames = [
        resize_frames(
            read_video(video[round(time * FOLDER_FPS)], sampling=one, progress=False).frames,
            height=plan.height,
            width=plan.width,
        )
        for time in plan.times
    ]
    return VideoClip(frames=torch.cat(frames), times=plan.times, info=info, plan=plan)


def _images_info(paths: Sequence[str | Path]) -> VideoInfo:
    if not paths:
        raise UsageError("the list of images is empty: want at least one path")
    return replace(
        probe(paths[0]),
        path=f"{len(paths)} images",
        duration=len(paths) / FOLDER_FPS,
        num_frames=len(paths),
        fps=FOLDER_FPS,
        container="folder",
    )
