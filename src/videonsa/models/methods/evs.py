"""EVS, efficient video sampling: what hardly differs from the frame before leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.methods.compression import Kept, TokenCompression
from videonsa.models.tower_probe import EncodedFrames

VALUES_AT_ONCE = 2**24
"""Of features compared together; 64 MB in float32."""


@dataclass(frozen=True)
class EVS(TokenCompression):
    """The first frame stays, and of the others the tokens that changed most since the frame before.

    All frames share one budget, so still ones may lose all their tokens. Images stay whole.
    """

    name = "evs"
    compares_frames = True

    pruning_rate: float = 0.7
    """Share of a video's tokens that leaves: as in models trained for it; vLLM sets none."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        super().__post_init__()
        if not 0 <= self.pruning_rate < 1:
            raise UsageError(f"pruning_rate={self.pruning_rate}: want 0 or more, and below 1")

    def kept_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """See `TokenCompression`: exact, and a frame's tokens at least."""
        kept = int(num_frames * tokens_per_frame * (1 - self.pruning_rate))
        return max(tokens_per_frame, kept)

    def compression_bytes(self, num_frames: int, tokens_per_frame: int, width: int) -> int:
        """See `TokenCompression`: some frames, those before and their products, in float32."""
        values = tokens_per_frame * width
        return 3 * 4 * values * min(num_frames - 1, max(1, VALUES_AT_ONCE // values))

    def compress(self, frames: EncodedFrames) -> Kept:
        """See `TokenCompression`."""
        num_frames, num_tokens = frames.grid[0], frames.tokens_per_frame
        changes = changes_of(frames.features.unflatten(0, (num_frames, num_tokens))).flatten()
        ranked = changes.argsort(descending=True, stable=True)
        places = ranked[: self.kept_tokens(num_frames, num_tokens)].sort().values
        return Kept(frames.features[places], places)


def changes_of(features: Tensor) -> Tensor:
    """How much each token differs from that at its place in the frame before, float32 `[F, N]`.

    1 less the cosine; of the first frame, more than any other.

    Args:
        features: `[F, N, hidden]`.
    """
    at_once = max(1, VALUES_AT_ONCE // features[0].numel())
    changes = [features.new_full((1, features.shape[1]), float("inf"), dtype=torch.float32)]
    for first in range(1, len(features), at_once):
        now = features[first : first + at_once].float()
        before = features[first - 1 : first + len(now) - 1].float()
        lengths = now.norm(dim=-1) * before.norm(dim=-1)
        changes.append(1 - (now * before).sum(-1) / lengths.clamp(min=1e-12))
    return torch.cat(changes)
