"""What a selection at random would pick: what selections are measured against."""

from typing import NamedTuple

import torch
from torch import Tensor

from videonsa.ops.masks import forced
from videonsa.ops.spec import NSASpec


class RowsByBlock(NamedTuple):
    """Vision rows of a layer, counted by the frame and the block that they are in."""

    rows: Tensor
    """float32 `[F, C]`: how many."""
    picks: Tensor
    """float32 `[F, C]`: how often the rows of a frame, all KV heads together, picked a block."""
    num_picked: Tensor
    """float32 `[F, C]`: blocks that the rows of a frame and a block picked, all heads together."""


def rows_by_block(
    frames: Tensor, blocks: Tensor, selected: Tensor, *, num_frames: int, num_blocks: int
) -> RowsByBlock:
    """Count rows and what they picked.

    Args:
        frames: int64 `[R]`, of each row.
        blocks: int64 `[R]`, the one that each row is in.
        selected: int `[R, H, n]`, negative for none.
        num_frames: F.
        num_blocks: C.
    """
    size = num_frames * num_blocks
    cells = frames * num_blocks + blocks
    picked = selected.flatten(1).long()  # [R, H * n]
    of_frames = (frames[:, None] * num_blocks + picked)[picked >= 0]
    weights = (picked >= 0).sum(1).float()
    found = (
        cells.bincount(minlength=size).float(),
        of_frames.bincount(minlength=size).float(),
        cells.bincount(weights, minlength=size),
    )
    return RowsByBlock(*(one.view(num_frames, num_blocks) for one in found))


def uniform_picks(counted: RowsByBlock, spec: NSASpec, *, num_heads: int) -> Tensor:
    """Picks to expect of rows that pick as many blocks as they did, but at random.

    What the spec forces (its own block, first and local ones) each row picks; the others are drawn
    without replacement from all other blocks up to its own, each as likely as any other.

    Args:
        counted: the rows of a layer.
        spec: which blocks are forced.
        num_heads: KV heads, H.

    Returns:
        float32 `[F, C]`, like `RowsByBlock.picks`.
    """
    own = torch.arange(counted.rows.shape[1], device=counted.rows.device)
    taken = forced(own, len(own), num_init=spec.num_init_blocks, num_local=spec.num_local_blocks)
    if not spec.force_current_block:
        taken = torch.zeros_like(taken)
    others = ~taken & (own <= own[:, None])  # [own block, block]
    drawn = counted.num_picked - num_heads * counted.rows * taken.sum(1)
    chance = drawn / others.sum(1).clamp(min=1)
    present = counted.rows.sum(1) > 0  # a step has rows of few frames
    picks = torch.zeros_like(counted.picks)
    picks[present] = num_heads * counted.rows[present] @ taken.float()
    picks[present] += chance[present] @ others.float()
    return picks
