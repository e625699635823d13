"""VisionZip: the tokens that a frame attends to most, and a few that stand for the others."""

from dataclasses import dataclass

import torch

from videonsa.errors import UsageError
from videonsa.models.methods.compression import Kept, TokenCompression, rows_of
from videonsa.models.methods.reduction import check_ratio
from videonsa.models.tower_probe import EncodedFrames, TowerProbe
from videonsa.ops.last_row import kept_of
from videonsa.ops.token_merging import add_mean_of_nearest


@dataclass(frozen=True)
class VisionZip(TokenCompression):
    """Every frame keeps its dominant tokens and a few contextual ones, whatever is asked.

    Dominant are those that receive most attention in the tower's last block. Of the others, every
    n-th is contextual: the mean of those whose keys are most like its own is added to it.
    """

    name = "visionzip"
    tower_probe = TowerProbe(received=(-1,), keys=-1)

    ratio: float = 0.1112
    """Share of the tokens of a frame that is kept: 64 of 576, as the authors' README calls it."""
    contextual: float = 0.15625
    """Share of these that is contextual, in all published settings."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        super().__post_init__()
        check_ratio("ratio", self.ratio)
        if not 0 <= self.contextual < 1:
            raise UsageError(
                f"contextual={self.contextual}: want a share of the kept tokens, 0 or more and "
                "below 1"
            )

    def kept_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """See `TokenCompression`: exact."""
        return num_frames * kept_of(tokens_per_frame, self.ratio)

    def compress(self, frames: EncodedFrames) -> Kept:
        """See `TokenCompression`."""
        assert frames.keys is not None, "the probe asks for them"
        size = frames.grid[0], frames.tokens_per_frame
        kept = kept_of(size[1], self.ratio)
        num_contextual = self._num_contextual(kept)
        features, keys = (x.unflatten(0, size) for x in (frames.features, frames.keys))
        ranked = frames.received[0].view(size).argsort(dim=1, descending=True, stable=True)
        dominant = ranked[:, : kept - num_contextual]
        others = ranked[:, kept - num_contextual :].sort(dim=1).values  # in their order
        step = max(1, others.shape[1] // max(num_contextual, 1))
        targets = torch.arange(num_contextual, device=others.device) * step
        places = torch.cat([dominant, others[:, targets]], dim=1).sort(dim=1).values
        if num_contextual:
            merged = add_mean_of_nearest(
                rows_of(features, others), rows_of(keys, others), targets.expand(size[0], -1)
            )
            index = others[:, targets, None].expand_as(merged)
            features = features.scatter(1, index, merged)
        first = torch.arange(size[0], device=places.device)[:, None] * size[1]
        return Kept(rows_of(features, places).flatten(0, 1), (first + places).flatten())

    def _num_contextual(self, kept: int) -> int:
        """Of the tokens of a frame: one at least where any is wanted, beside a dominant one."""
        wanted = max(1, int(kept * self.contextual)) if self.contextual else 0
        return min(wanted, kept - 1)
