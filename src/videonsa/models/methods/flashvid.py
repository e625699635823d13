"""FlashVID: diverse tokens of each frame, the others merged along time, then within frames."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.methods.compression import Kept, rows_of
from videonsa.models.methods.fastv import FastV
from videonsa.models.methods.protocol import Attended
from videonsa.models.methods.reduction import TokenReduction, check_ratio
from videonsa.models.methods.two_stages import TwoStageCompression
from videonsa.models.tower_probe import EncodedFrames, TowerProbe
from videonsa.ops.spatiotemporal import (
    density_clusters,
    diverse_tokens,
    frames_at_once,
    merge_trees,
    relevance,
    segment_starts,
)

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep


@dataclass(frozen=True)
class FlashVID(TwoStageCompression):
    """A video keeps diverse tokens of each frame, and means of those that are alike.

    It is cut into segments of similar frames. In a segment each frame keeps tokens that receive
    much attention in the tower, fit the segment and are unlike one another. The others are merged
    into similar ones of the frame before, in trees, and what is left of a frame in clusters. From a
    later layer on FastV's rule keeps a share of all these.
    """

    name = "flashvid"
    tower_probe: ClassVar[TowerProbe] = TowerProbe(received=(-1,))
    compares_frames = True
    published = (20, 28)

    ratio: float = 0.25
    """Share of the tokens that the layers hold, on average."""
    expansion: float = 1.25
    """Times this share is read by the first layers."""
    alpha: float = 0.7
    """Share of these that is chosen by attention and diversity; the others are merged."""
    merge_threshold: float = 0.8
    """Cosine above which a token is merged into one of the frame before."""
    segment_threshold: float = 0.9
    """Cosine between the means of frames below which a segment ends."""
    min_segments: int = 8
    """Where there are as many frames."""
    layer: int | None = None
    """Number of layers that hold all of these; None: 20 of 28 of the model's."""
    layer_ratio: float = 0.3
    """Share of these that the other layers hold; 1: all."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        super().__post_init__()
        check_ratio("ratio", self.ratio)
        for name, least in (("expansion", 1.0), ("min_segments", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)}: want {least:g} at least")
        for name in ("alpha", "merge_threshold", "segment_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)}: want a number from 0 to 1")

    def _budget(self, tokens_per_frame: int) -> tuple[int, int]:
        """Tokens of a frame that are read, on average; how many of them are chosen."""
        wanted = _rounded_up(tokens_per_frame * self.ratio * self.expansion)
        budget = min(tokens_per_frame, wanted)
        return budget, _rounded_up(budget * self.alpha)

    def kept_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """See `TokenCompression`: at most, for clusters are counted frame by frame, rounded up."""
        budget, chosen = self._budget(tokens_per_frame)
        return num_frames * min(tokens_per_frame, budget + (budget > chosen))

    def compression_bytes(self, num_frames: int, tokens_per_frame: int, width: int) -> int:
        """See `TokenCompression`: all features in float32, and what is compared at once."""
        at_once = min(num_frames, frames_at_once(tokens_per_frame, width))
        compared = at_once * tokens_per_frame * (width + tokens_per_frame)
        return 4 * (num_frames * tokens_per_frame * width + 3 * compared)

    def compress(self, frames: EncodedFrames) -> Kept:
        """See `TokenCompression`."""
        num_frames, num_tokens = frames.grid[0], frames.tokens_per_frame
        features = frames.features.unflatten(0, (num_frames, num_tokens))
        received = frames.received[0].view(num_frames, num_tokens)
        starts = segment_starts(
            features.mean(1, dtype=torch.float32),
            threshold=self.segment_threshold,
            min_segments=self.min_segments,
        )
        found: list[Kept] = []
        for start, stop in pairwise([*starts, num_frames]):
            for kept in self._segment(features[start:stop], received[start:stop]):
                assert kept.places is not None
                found.append(kept._replace(places=start * num_tokens + kept.places))
        places, order = torch.cat([one.places for one in found if one.places is not None]).sort()
        return Kept(torch.cat([one.features for one in found])[order], places)

    def _segment(self, features: Tensor, received: Tensor) -> Iterator[Kept]:
        """What is kept of a segment `[F, N, hidden]`, in no order."""
        num_frames, num_tokens, _ = features.shape
        budget, num_chosen = self._budget(num_tokens)
        free = torch.ones_like(received, dtype=torch.bool)
        if num_chosen:
            chosen = diverse_tokens(features, received * relevance(features), num_chosen)
            free.scatter_(1, chosen, False)
            first = num_tokens * torch.arange(num_frames, device=chosen.device)[:, None]
            yield Kept(rows_of(features, chosen).flatten(0, 1), (first + chosen).flatten())
        wanted = num_frames * (budget - num_chosen)
        if not wanted:
            return
        trees = merge_trees(
            features,
            free,
            threshold=self.merge_threshold,
            most=num_frames * (num_tokens - budget),
        )
        roots = trees.is_root & free
        share = wanted / int(roots.sum())
        for frame in range(num_frames):
            places = roots[frame].nonzero()[:, 0]
            tokens, places = clustered(trees.means[frame, places], places, share)
            yield Kept(tokens.to(features.dtype), frame * num_tokens + places)

    # Inside the layers, FastV's rule.

    text_is_dense = TokenReduction.text_is_dense  # text tokens stay

    @property
    def _inside(self) -> TokenReduction:
        """What lets tokens leave inside the layers."""
        assert self.layer is not None, "of_depth states it"
        return FastV(attention=self.attention, layer=self.layer, ratio=self.layer_ratio)

    def attend(
        self,
        layer: "HybridAttention",
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: "AttentionStep",
    ) -> Tensor | Attended:
        """See `AttentionMethod`."""
        method = self._inside if layer.layer_idx in self.leaves_after else self.attention
        return method.attend(layer, hidden, q, k, v, step)

    def kept_after(
        self, layer: int, hidden: Tensor, step: "AttentionStep", following: Any
    ) -> Tensor | None:
        """See `AttentionMethod`."""
        return self._inside.kept_after(layer, hidden, step, following)


def clustered(tokens: Tensor, places: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """A share of the tokens of a frame, rounded up: means of clusters, at the places of centres.

    Args:
        tokens: float32 `[n, hidden]`.
        places: int64 `[n]`.
        share: 1 or more: all of them, as they are.
    """
    count = _rounded_up(len(tokens) * share)
    if count >= len(tokens):
        return tokens, places
    cluster, centres = density_clusters(tokens, count)
    members = (cluster == torch.arange(count, device=cluster.device)[:, None]).float()
    return members @ tokens / members.sum(1, keepdim=True), places[centres]


def _rounded_up(count: float) -> int:
    """A product of shares may exceed its whole number in the last digits."""
    return math.ceil(count - 1e-9)
