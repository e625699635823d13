"""The videos and images of a record: where they are, what sampling takes of them, their frames."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from videonsa.data.records import ImageRef, Media, VideoRef
from videonsa.data.scripts import Drawn, draw, script_info, script_of
from videonsa.video.decode import read_video
from videonsa.video.framelist import FrameList
from videonsa.video.sampling import SamplingPlan, SamplingSpec, VideoInfo, plan_sampling
from videonsa.video.source import VideoPath


class Frames(NamedTuple):
    """Sampled frames at their final size."""

    pixels: NDArray[np.uint8]  # [N, 3, H, W], RGB
    times: tuple[float, ...]  # seconds of each
    even_times: tuple[float, ...] | None = None  # as in `SamplingPlan`

    @property
    def position_times(self) -> tuple[float, ...]:
        """Seconds of each as position ids count them, as in `VideoClip`."""
        return self.even_times or self.times


def path_of(media: Media) -> VideoPath:
    """What `read_video` takes for a video or an image in files; a script has no file."""
    if isinstance(media, ImageRef):
        return media.path
    if media.frames:
        return FrameList(tuple(map(Path, media.frames)), fps=media.frame_rate)
    assert media.path is not None, "a script is in no file"
    return media.path


def is_script(media: Media) -> bool:
    """Whether it is a video that is rendered, in no file."""
    return isinstance(media, VideoRef) and media.script is not None


def name_of(media: Media) -> str:
    """A video or an image in words."""
    script = script_of_media(media)
    return str(path_of(media)) if script is None else f"rendered video {script.seed}"


def sampling_of(media: Media, sampling: SamplingSpec) -> SamplingSpec:
    """How a video or an image is sampled: as it says itself, else as all are.

    Raises:
        UsageError: what it says does not go with the rest.

    """
    own = media.own_sampling
    if not own.keys().isdisjoint(("fps", "num_frames")):
        sampling = replace(sampling, fps=None, num_frames=None, timestamps=None)
    if "total_pixels" in own:
        own["max_tokens"] = max(1, own.pop("total_pixels") // sampling.factor**2)
    return replace(sampling, **own)


def plan_media(media: Media, info: VideoInfo, sampling: SamplingSpec) -> SamplingPlan:
    """The frames that are taken of a video or an image; a script is rendered as they are wanted.

    Raises:
        UsageError: a frame shape that cannot be resized.

    """
    if not is_script(media):
        return plan_sampling(info, sampling_of(media, sampling))
    num_frames = info.num_frames or 0
    return SamplingPlan(
        times=tuple(index / info.fps for index in range(num_frames)),
        height=info.height,
        width=info.width,
        sampled_fps=info.fps,
    )


def script_of_media(media: Media) -> Drawn | None:
    """What a video that is in no file is drawn from; None of any other."""
    if isinstance(media, ImageRef) or media.script is None:
        return None
    return script_of(media.script)


def read_media(media: Media, sampling: SamplingSpec) -> Frames:
    """The frames that `sampling`, or the rate that a video asks for itself, takes of it.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: a frame shape that cannot be resized, or a script that cannot be rendered.
        BudgetError: more than fits the memory.

    """
    script = script_of_media(media)
    if script is not None:
        plan = plan_media(media, script_info(script), sampling)
        return Frames(draw(script), plan.times)
    clip = read_video(
        path_of(media), sampling=sampling_of(media, sampling), workers=1, progress=False
    )
    return Frames(clip.frames.numpy(), clip.times, clip.plan.even_times)
