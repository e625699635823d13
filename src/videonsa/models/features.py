"""Patches or frames through the vision tower, part by part, and their features into a prompt."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.rope import Grid, TokenType
from videonsa.models.tower_probe import EncodedFrames, ProbedBlocks, TowerProbe
from videonsa.models.vision import VisionPlan, frame_chunks, plan_vision
from videonsa.video.processing import patchify

PATCHES_PER_CHUNK = 2**16
"""Patches that go through the tower together: about 3 GB of activations at the 7B model's widths,
and products large enough for any GPU."""
PATCHES_PER_PART = 2**13
"""Patches of a video's frames that go to the tower together while it is decoded: enough for
products that fill a GPU, few enough that little is left to encode when the last frame comes."""


def encode_patches(tower: Any, config: Any, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Features of the merged tokens of images or videos, `[M, hidden]`.

    Args:
        tower: the vision tower.
        config: its vision config.
        pixels: `[P, channels * temporal * patch * patch]`, on the tower's device or the CPU.
        grids: (t, h, w) of each image or video, in patches.

    Raises:
        UsageError: patches and grids that do not match.
    """
    wanted = sum(t * h * w for t, h, w in grids)
    if len(pixels) != wanted:
        raise UsageError(
            f"{len(pixels)} patches of pixels but the {len(grids)} grids describe {wanted}: "
            "pass the pixels and grids of the same images and videos"
        )
    chunks = list(frame_chunks(grids, PATCHES_PER_CHUNK))
    parts = pixels.split([sum(t * h * w for t, h, w in chunk) for chunk in chunks])
    pairs = zip(parts, chunks, strict=True)
    return torch.cat([_encode_chunk(tower, config, part, chunk) for part, chunk in pairs])


def encode_frames(
    tower: Any, config: Any, parts: Iterable[Tensor], *, probe: TowerProbe | None = None
) -> Iterator[EncodedFrames]:
    """Encode the frames of one video while they come; what each part gave follows at once.

    Args:
        tower: the vision tower.
        config: its vision config.
        parts: uint8 `[n, 3, H, W]`, in order and of one size; all but the last hold whole temporal
            patches.
        probe: what is asked of the tower beside features.

    Raises:
        UsageError: no frames, frames of another type or size, or a temporal patch cut in two.
        ModelError: a tower without the blocks that are asked.
    """
    size: torch.Size | None = None
    last = 0
    for part in parts:
        if last % config.temporal_patch_size:
            raise UsageError(
                f"more frames after a part of {last}: want whole temporal patches of "
                f"{config.temporal_patch_size} frames in every part but the last"
            )
        if size is not None and part.shape[1:] != size:
            raise UsageError(
                f"frames of {list(part.shape[1:])} after {list(size)}: want one size in a video"
            )
        last, size = len(part), part.shape[1:]
        yield from _encode_part(tower, config, part, probe)
    if size is None:
        raise UsageError("no frames came to be encoded: want at least one")


def _encode_part(
    tower: Any, config: Any, frames: Tensor, probe: TowerProbe | None
) -> Iterator[EncodedFrames]:
    area = frames.shape[-2:].numel() // config.patch_size**2
    at_once = max(1, PATCHES_PER_CHUNK // max(area, 1)) * config.temporal_patch_size
    for some in frames.split(at_once):
        yield _encode_some(tower, config, some, probe)


def _encode_some(
    tower: Any, config: Any, frames: Tensor, probe: TowerProbe | None
) -> EncodedFrames:
    merge = config.spatial_merge_size
    # Cut on the tower's device: bytes travel there, not floats.
    patches = patchify(
        frames.to(tower.device),
        patch_size=config.patch_size,
        merge_size=merge,
        temporal_patch_size=config.temporal_patch_size,
    )
    pixels, grid = patches.pixels, patches.grid
    merged = grid[0], grid[1] // merge, grid[2] // merge
    if probe is None:
        return EncodedFrames(_encode_chunk(tower, config, pixels, [grid]), merged)
    plan = _plan(config, [grid])
    probed = ProbedBlocks(probe, config.fullatt_block_indexes)
    features = _run_tower(tower, pixels, [grid], plan, probed=probed)
    return probed.frames(features, merged, plan.window_index)


def _encode_chunk(tower: Any, config: Any, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
    return _run_tower(tower, pixels, grids, _plan(config, grids))


def _plan(config: Any, grids: Sequence[Grid]) -> VisionPlan:
    return plan_vision(
        grids,
        merge_size=config.spatial_merge_size,
        window_tokens=config.window_size // config.spatial_merge_size // config.patch_size,
    )


def _run_tower(
    tower: Any, pixels: Tensor, grids: Sequence[Grid], plan: VisionPlan, **more: Any
) -> Tensor:
    features: Tensor = tower(
        pixels.to(tower.device, tower.dtype),
        grid_thw=torch.tensor(grids, device=tower.device),
        **plan.tower_inputs(tower.device),
        **more,
    ).pooler_output
    return features


def place_features(features: Tensor, embeds: Tensor, types: Tensor, kind: TokenType) -> Tensor:
    """Put features `[M, hidden]` into the rows of a kind of `embeds` `[B, T, hidden]`, in order.

    Raises:
        UsageError: not as many features as rows of that kind.
    """
    rows = (types == kind).flatten().nonzero()[:, 0]
    name, wanted = kind.name.lower(), len(rows)
    if len(features) != wanted:
        raise UsageError(
            f"{len(features)} {name} features but {wanted} {name} tokens in input_ids: want one a "
            "token, of the frames that the prompt was made for"
        )
    if not wanted:
        return embeds
    # Not masked_scatter: on a GPU it takes nine bytes more for each value of `embeds`.
    placed = embeds.flatten(0, 1).index_copy(0, rows.to(embeds.device), features.to(embeds))
    return placed.view_as(embeds)
