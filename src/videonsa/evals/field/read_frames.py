"""What the process that reads videos imports: no model, so that it starts quickly."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from videonsa.video.decode import VideoClip, read_video
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import VideoLike


class ReadFrames(NamedTuple):
    """A clip in parts that pass quickly between processes."""

    pixels: NDArray[np.uint8]
    """[N, 3, H, W], RGB."""
    clip: VideoClip
    """Without its frames."""


def read_frames(source: VideoLike, sampling: SamplingSpec) -> ReadFrames:
    """As `read_video`."""
    clip = read_video(source, sampling=sampling, progress=False)
    return ReadFrames(clip.frames.numpy(), replace(clip, frames=clip.frames[:0].clone()))
