"""Rendered clips as the model takes them."""

from typing import Any

import torch

from videonsa.video.processing import patchify
from videonsa.video.synthetic.scene import SAMPLE_PERIOD, SIZE

TOKENS_PER_PATCH = (SIZE // 28) ** 2
"""Merged tokens of a temporal patch."""


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
