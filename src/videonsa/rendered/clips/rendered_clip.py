"""Rendered clips: a scene with the times of its frames, and clips as the model takes them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.rendered.clips.clip_frames import render_scene
from videonsa.rendered.clips.scene import (
    MIN_DURATION,
    SAMPLE_PERIOD,
    SIZE,
    Scene,
    make_scene,
    make_still,
)
from videonsa.video.processing import patchify

TOKENS_PER_PATCH = (SIZE // 28) ** 2
"""Merged tokens of a temporal patch."""
MAX_PATCHES = 1 << 16
"""Of a clip: 18 hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A scene and when its frames are taken: 2 a second, a pair a temporal patch."""

    seed: int
    patches: int
    """1: a still; else seconds, 8 or more."""
    phase: float
    """Seconds of the first frame, below half a second."""

    def __post_init__(self) -> None:
        """Refuse what is no clip: UsageError."""
        if self.patches != 1 and not MIN_DURATION <= self.patches <= MAX_PATCHES:
            raise UsageError(
                f"patches={self.patches}: want 1, a still, or {MIN_DURATION:.0f} and more, at most "
                f"{MAX_PATCHES}"
            )

    @property
    def fps(self) -> float:
        """Frames a second."""
        return 1 / SAMPLE_PERIOD

    @property
    def num_frames(self) -> int:
        """Two a patch."""
        return 2 * self.patches

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_frames * SAMPLE_PERIOD

    @property
    def frame_size(self) -> int:
        """Pixels a side."""
        return SIZE

    @property
    def scene(self) -> Scene:
        """What is seen."""
        if self.patches == 1:
            return make_still(self.seed)
        return make_scene(self.seed, duration=self.duration)

    def render(self) -> Tensor:
        """Its frames, with the noise of its seed: uint8 [N, 3, SIZE, SIZE]."""
        times = [self.phase + SAMPLE_PERIOD * index for index in range(self.num_frames)]
        return render_scene(self.scene, times)


def video_inputs(frames: torch.Tensor) -> dict[str, Any]:
    """The video arguments of a model's forward for clips of equal length sampled at 2 fps.

    Args:
        frames: uint8 [B, N, 3, SIZE, SIZE], N even, on any device.
    """
    patched = patchify(frames.flatten(0, 1))
    grid = (frames.shape[1] // 2, *patched.grid[1:])
    times = tuple(2 * SAMPLE_PERIOD * i for i in range(grid[0]))
    return {
        "pixel_values_videos": patched.pixels,
        "video_grid_thw": torch.tensor([grid] * len(frames)),
        "video_times": [times] * len(frames),
    }
