"""mRoPE position ids of text, images and videos (docs/semantics.md, "Positions")."""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videonsa.errors import UsageError

Grid = tuple[int, int, int]
"""Temporal patches, and height and width in (unmerged) patches."""
TemporalIds = Literal["exact", "truncated", "fixed"]


class TokenType(IntEnum):
    """What a token stands for."""

    TEXT = 0
    IMAGE = 1
    VIDEO = 2


def mrope_position_ids(
    token_types: Tensor,
    grids: Sequence[Grid],
    video_times: Sequence[Sequence[float]],
    *,
    tokens_per_second: float,
    merge_size: int,
    temporal_ids: TemporalIds = "exact",
    start: int = 0,
) -> tuple[Tensor, int]:
    """Position ids of one unpadded sequence.

    Text advances all three ids together. A vision segment that begins at p has
    t = p + floor((time_i - time_0) * tokens_per_second) in float64, h = p + row and w = p + column
    over the merged grid. What follows it begins at the maximum over all ids so far + 1. A product
    that is within 1e-6 of a whole number counts as it: differences of times are that exact.

    Args:
        token_types: `[L]` ints of `TokenType`.
        grids: one (t, h, w) for each image and video, in order of appearance.
        video_times: for each video, the seconds of the first frame of each temporal patch; where
            frames are spread evenly, i * temporal_patch_size / sampled fps.
        tokens_per_second: ids per second of video; 2 for Qwen2.5-VL.
        merge_size: patches merged along height and width; 2 for Qwen2.5-VL.
        temporal_ids: "exact"; "truncated" and "fixed" are those of the released training and
            evaluation code: seconds per temporal patch cut to an int, or always 1.
        start: the first id; for a later turn, the next position of the turn before.

    Returns:
        Ids (t, h, w) as int64 `[3, L]` on the device of `token_types`, and the next position.

    Raises:
        UsageError: grids or times that do not match the vision tokens.
    """
    types = token_types.cpu().numpy()
    ids = np.empty((3, len(types)), dtype=np.int64)
    times = iter(video_times)
    done, position = 0, start
    segments = vision_segments(token_types, grids, merge_size=merge_size)
    for grid, (begin, end) in zip(grids, segments, strict=True):
        position = _advance_text(ids[:, done:begin], position)
        is_video = types[begin] == TokenType.VIDEO
        seconds = seconds_of_patches(next(times, None), grid, temporal_ids) if is_video else None
        ids[:, begin:end] = position + segment_ids(
            grid, seconds, tokens_per_second=tokens_per_second, merge_size=merge_size
        )
        position = int(ids[:, begin:end].max()) + 1
        done = end
    if next(times, None) is not None:
        raise UsageError("video_times has more entries than there are videos: pass one for each")
    position = _advance_text(ids[:, done:], position)
    return torch.from_numpy(ids).to(token_types.device), position


def vision_segments(
    token_types: Tensor, grids: Sequence[Grid], *, merge_size: int
) -> list[tuple[int, int]]:
    """Where the tokens of each image or video begin and end in one unpadded sequence.

    Args:
        token_types: `[L]` ints of `TokenType`.
        grids: one (t, h, w) for each image and video, in order of appearance.
        merge_size: patches merged along height and width.

    Raises:
        UsageError: grids that do not match the vision tokens.
    """
    types = token_types.cpu().numpy()
    vision = np.flatnonzero(types != TokenType.TEXT)
    segments: list[tuple[int, int]] = []
    taken = 0
    for grid in grids:
        size = grid[0] * (grid[1] // merge_size) * (grid[2] // merge_size)
        segments.append(_segment(types, vision, taken, size, grid))
        taken += size
    if taken != len(vision):
        raise UsageError(
            f"the prompt holds {len(vision)} vision tokens but the {len(grids)} grids describe "
            f"{taken}: pass one grid (t, h, w) for each image and video"
        )
    return segments


def _segment(
    types: NDArray[np.int64], vision: NDArray[np.int64], taken: int, size: int, grid: Grid
) -> tuple[int, int]:
    """Where the vision segment begins and ends whose first token is vision token number `taken`."""
    if size < 1 or taken + size > len(vision):
        raise UsageError(
            f"grid {grid} describes {size} tokens but {len(vision) - taken} vision tokens are "
            "left in the prompt: pass one grid (t, h, w) for each image and video"
        )
    begin, end = int(vision[taken]), int(vision[taken + size - 1]) + 1
    if end - begin != size or (types[begin:end] != types[begin]).any():
        raise UsageError(
            f"grid {grid} describes {size} tokens but the run of vision tokens at {begin} is "
            "shorter: pass the grids in the order of the images and videos in the prompt"
        )
    return begin, end


def _advance_text(ids: NDArray[np.int64], position: int) -> int:
    length = ids.shape[1]
    ids[:] = np.arange(position, position + length)
    return int(position + length)


def seconds_of_patches(
    given: Sequence[float] | None, grid: Grid, temporal_ids: TemporalIds
) -> NDArray[np.float64]:
    """Seconds of each temporal patch since the first, as position ids count them.

    Args:
        given: seconds of the first frame of each.
        grid: of the video, in patches.
        temporal_ids: as for `mrope_position_ids`.

    Raises:
        UsageError: not as many seconds as temporal patches, or seconds that decrease.
    """
    if given is None:
        raise UsageError(
            f"video_times has no entry for the video of grid {grid}: pass one for each"
        )
    seconds = np.asarray(given, dtype=np.float64)
    if seconds.shape != (grid[0],) or not np.isfinite(seconds).all():
        raise UsageError(
            f"video_times gives {seconds.shape} values for the video of grid {grid}: want "
            f"{grid[0]} finite seconds, one for each temporal patch"
        )
    if (np.diff(seconds) < 0).any():
        raise UsageError("video_times decreases: want the seconds of frames in order")
    if temporal_ids == "exact" or grid[0] == 1:
        since_first: NDArray[np.float64] = seconds - seconds[0]
        return since_first
    period = 1.0
    if temporal_ids == "truncated":
        # Rounded first: times that were summed up may end a hair below a whole second.
        period = math.trunc(round((seconds[-1] - seconds[0]) / (grid[0] - 1), 6))
    return np.arange(grid[0], dtype=np.float64) * period


def segment_ids(
    grid: Grid,
    seconds: NDArray[np.float64] | None,
    *,
    tokens_per_second: float,
    merge_size: int,
) -> NDArray[np.int64]:
    """Ids of one image or video from 0, `[3, t * h * w]` over the merged grid.

    Args:
        grid: (t, h, w) in patches.
        seconds: of each temporal patch since the first of the video; None for an image.
        tokens_per_second: as for `mrope_position_ids`.
        merge_size: as for `mrope_position_ids`.
    """
    shape = (grid[0], grid[1] // merge_size, grid[2] // merge_size)
    ids: NDArray[np.int64] = np.indices(shape).reshape(3, -1)
    if seconds is not None:
        # Rounded first: 4.1 - 0.1 is a hair below 4.
        ticks = np.floor(np.round(seconds * tokens_per_second, 6)).astype(np.int64)
        ids[0] = np.repeat(ticks, shape[1] * shape[2])
    return ids
