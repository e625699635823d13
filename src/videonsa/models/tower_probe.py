"""What a method may ask of the vision tower beside its features, worked out frame by frame.

Only the blocks that attend to whole frames are asked. A "frame" of the tower is a temporal patch:
its patches attend to one another and to no others, so nothing here is larger than one frame's
scores.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from videonsa.errors import ModelError
from videonsa.models.rope import Grid

SCORES_AT_ONCE = 2**25
"""Scores of all heads that are there together, 128 MB in float32, and once more as
probabilities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerProbe:
    """What is asked. Blocks count among those that attend to whole frames; -1 is the last."""

    received: tuple[int, ...] = ()
    """Blocks whose attention is asked for: how much of it each token receives."""
    keys: int | None = None
    """The block whose keys are asked for."""


class EncodedFrames(NamedTuple):
    """What the tower gave of F whole frames of one clip, N merged tokens each, in their order."""

    features: Tensor
    """`[F * N, hidden]`, after the merger."""
    grid: Grid
    """(F, rows, columns) in merged tokens."""
    received: tuple[Tensor, ...] = ()
    """Float32 `[F * N]` for each block asked for: attention that a token's patches receive from the
    patches of their frame, summed over these, as a mean over heads and over the token's patches. In
    every frame its mean is 1."""
    keys: Tensor | None = None
    """Float32 `[F * N, D]`: keys after rotation, a mean over heads and over a token's patches."""

    @property
    def tokens_per_frame(self) -> int:
        """N."""
        return self.grid[1] * self.grid[2]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Parts of one clip that follow one another, as one."""
        if len(parts) == 1:
            return parts[0]
        keys = [part.keys for part in parts if part.keys is not None]
        received = zip(*(part.received for part in parts), strict=True)
        return cls(
            torch.cat([part.features for part in parts]),
            (sum(part.grid[0] for part in parts), *parts[0].grid[1:]),
            tuple(torch.cat(of_block) for of_block in received),
            torch.cat(keys) if keys else None,
        )


class ProbedBlocks:
    """Collects what a probe asks for during one forward of the tower."""

    def __init__(self, probe: TowerProbe, blocks: Sequence[int]) -> None:
        """Begin with nothing.

        Args:
            probe: what is asked.
            blocks: numbers of the blocks that attend to whole frames.

        Raises:
            ModelError: the tower has too few of them.
        """
        asked = [*probe.received, *(() if probe.keys is None else (probe.keys,))]
        if not all(-len(blocks) <= place < len(blocks) for place in asked):
            raise ModelError(
                f"the method asks blocks {asked} of the vision tower's {len(blocks)} that attend "
                "to whole frames: want a tower with more of them, or another method"
            )
        self._asked = [blocks[place] for place in probe.received]
        self._keyed = None if probe.keys is None else blocks[probe.keys]
        self._received: dict[int, Tensor] = {}
        self._keys: Tensor | None = None

    def see(self, block: int, q: Tensor, k: Tensor, frames: Iterable[Tensor]) -> None:
        """Take what is asked of a block, if anything.

        Args:
            block: its number.
            q: `[P, H, D]` after rotation.
            k: `[P, H, D]` after rotation.
            frames: rows `[F, n]` of the frames of each size.
        """
        if block in self._asked:
            received = torch.empty(len(q), device=q.device)
            for rows in frames:
                received[rows] = received_attention(q[rows], k[rows])
            self._received[block] = received
        if block == self._keyed:
            self._keys = k.float().mean(1)

    def frames(self, features: Tensor, grid: Grid, window_index: Tensor) -> EncodedFrames:
        """What was asked for beside the features of the same forward.

        Args:
            features: `[M, hidden]` in the order of the frames.
            grid: (t, h, w) in merged tokens.
            window_index: int64 `[M]`, the merged tokens in the order in which blocks have them.
        """

        def merged(of_patches: Tensor) -> Tensor:
            per_token = of_patches.unflatten(0, (len(window_index), -1)).mean(1)
            ordered = torch.empty_like(per_token)
            ordered[window_index.to(per_token.device)] = per_token
            return ordered.to(features.device)

        received = tuple(merged(self._received[block]) for block in self._asked)
        keys = None if self._keys is None else merged(self._keys)
        return EncodedFrames(features, grid, received, keys)


def probe_bytes(num_frames: int, num_patches: int, *, heads: int, value_bytes: int) -> int:
    """Peak bytes of `received_attention` of frames of so many patches."""
    scores = heads * num_patches * max(1, SCORES_AT_ONCE // (heads * num_patches))
    return min(num_frames * heads * num_patches**2, scores) * (value_bytes + 4)


def received_attention(q: Tensor, k: Tensor) -> Tensor:
    """Attention that each patch receives from those of its frame, float32 `[F, n]`.

    A mean over heads of the sums over queries; some rows of some frames at a time.

    Args:
        q: `[F, n, H, D]`.
        k: `[F, n, H, D]`.
    """
    num_frames, num_patches, heads, width = q.shape
    at_once = max(1, SCORES_AT_ONCE // (heads * num_patches))  # rows of queries
    frames = min(num_frames, max(1, at_once // num_patches))
    received = torch.zeros(num_frames, num_patches, device=q.device)
    for part in torch.arange(num_frames).split(frames):
        own = slice(int(part[0]), int(part[-1]) + 1)
        keys = k[own].permute(0, 2, 3, 1)  # [F, H, D, n]
        for rows in q[own].transpose(1, 2).split(max(1, at_once // len(part)), dim=2):
            scores = (rows * width**-0.5) @ keys  # [F, H, rows, n]
            received[own] += scores.softmax(-1, dtype=torch.float32).sum(2).mean(1)
    return received
