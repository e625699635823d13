"""VScan: tokens leave twice, in the tower by what it attends to, then inside the layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from videonsa.models.fused import ROWS_PER_CHUNK
from videonsa.models.linears import linear_rows
from videonsa.models.methods.compression import Kept
from videonsa.models.methods.reduction import TokenReduction, check_ratio
from videonsa.models.methods.two_stages import TwoStageCompression
from videonsa.models.tower_probe import EncodedFrames, TowerProbe
from videonsa.ops.last_row import kept_of, last_row_attention, most_attended
from videonsa.ops.token_merging import merge_into_nearest

if TYPE_CHECKING:
    from videonsa.models.step import AttentionStep

WINDOW = 4
"""Merged tokens along a side of the tower's windows: 112 pixels."""


@dataclass(frozen=True)
class VScan(TwoStageCompression):
    """Some tokens of each frame are read, and from the middle layer on some of these are held.

    A frame keeps the tokens that receive most attention in the tower: half of them in its first
    block that attends to whole frames, window by window, the others in its last block. Those that
    leave are merged into the most similar that stay. In the layers, the last token chooses, with
    queries and keys that are not rotated. All tokens keep their positions.

    Its authors have images only: here a video is read frame (temporal patch) by frame.
    """

    name = "vscan"
    tower_probe: ClassVar[TowerProbe] = TowerProbe(received=(0, -1))
    published = (14, 28)

    ratio: float = 0.167
    """Share of a frame's tokens that is read."""
    layer: int | None = None
    """Number of layers that hold all of these; None: half of the model's, as 14 of 28."""
    layer_ratio: float = 0.333
    """Share of these that the other layers hold; 1: all, and no layer is asked."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        super().__post_init__()
        check_ratio("ratio", self.ratio)

    def compress(self, frames: EncodedFrames) -> Kept:
        """See `TokenCompression`."""
        count, *size = frames.grid
        num_tokens = frames.tokens_per_frame
        early, late = (scores.view(count, num_tokens) for scores in frames.received)
        places = chosen(early, late, (size[0], size[1]), ratio=self.ratio)  # [F, K]
        features = merge_into_nearest(frames.features.unflatten(0, (count, num_tokens)), places)
        first = num_tokens * torch.arange(count, device=places.device)
        return Kept(features.flatten(0, 1), (first[:, None] + places).flatten())

    def kept_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """See `TokenCompression`."""
        return num_frames * kept_of(tokens_per_frame, self.ratio)

    text_is_dense = TokenReduction.text_is_dense  # text tokens stay

    def kept_after(
        self, layer: int, hidden: Tensor, step: "AttentionStep", following: Any
    ) -> Tensor | None:
        """See `AttentionMethod`."""
        if not step.tokens.has_vision:
            return None
        scores = unrotated_attention(following, hidden[0]).to(hidden.device)
        vision = step.tokens.vision_mask[0, -hidden.shape[1] :]
        return most_attended(scores, vision, ratio=self.layer_ratio)


def chosen(early: Tensor, late: Tensor, size: tuple[int, int], *, ratio: float) -> Tensor:
    """Places of the tokens that each frame keeps.

    Half of them have the highest early scores, of which each window has an equal share at most; the
    others have the highest late scores of those that are left. Of equal scores the earlier token.

    Args:
        early: float `[F, N]`, attention received in the first block that attends to whole frames.
        late: the same of the last block.
        size: rows and columns of the N merged tokens.
        ratio: share of them that is kept.

    Returns:
        int64 `[F, K]`, ascending in each frame.
    """
    num_kept = kept_of(early.shape[1], ratio)
    first = half_by_windows(early, windows(*size), num_kept)
    best = late.masked_fill(first, float("inf")).argsort(dim=1, descending=True, stable=True)
    return best[:, :num_kept].sort(dim=1).values


def windows(rows: int, columns: int) -> Tensor:
    """The window of each merged token of a frame, int64 `[rows * columns]`."""
    down, across = torch.arange(rows) // WINDOW, torch.arange(columns) // WINDOW
    return (down[:, None] * (int(across[-1]) + 1) + across).flatten()


def half_by_windows(scores: Tensor, window: Tensor, num_kept: int) -> Tensor:
    """The best tokens of each frame, half of `num_kept`, at most an equal share from each window.

    Args:
        scores: float `[F, N]`.
        window: int64 `[N]`, of each token, on the CPU.
        num_kept: of a frame; fewer than half are taken where windows at the border are too small.

    Returns:
        bool `[F, N]`.
    """
    sizes = window.bincount()
    share = -(-num_kept // (2 * len(sizes)))
    firsts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    is_within = (torch.arange(len(window)) - firsts < share).to(scores.device)  # by window
    order = scores.argsort(dim=1, descending=True, stable=True)  # [F, N] tokens, the best first
    # Places in `order`, window by window, the best of each first.
    by_window = window.to(scores.device)[order].argsort(dim=1, stable=True)
    within = torch.zeros_like(scores, dtype=torch.bool)
    within.scatter_(1, by_window, is_within.expand_as(within))  # in `order`
    taken = within & (within.cumsum(1) <= num_kept // 2)
    return torch.zeros_like(within).scatter(1, order, taken)


def unrotated_attention(layer: Any, hidden: Tensor) -> Tensor:
    """Attention of the last token to all in a layer, were no token's position known.

    A mean over the query heads; keys are projected some rows at a time, queries of one row.

    Args:
        layer: a decoder layer.
        hidden: `[T, hidden]`, its input.

    Returns:
        Float32 `[T]`, on the device of the layer.
    """
    attention, norm = layer.self_attn, layer.input_layernorm
    hidden = hidden.to(next(layer.parameters()).device)
    q = linear_rows(norm(hidden[-1:]), [attention.q_proj])[0]
    keys = [linear_rows(norm(rows), [attention.k_proj])[0] for rows in hidden.split(ROWS_PER_CHUNK)]
    heads = (x.unflatten(-1, (-1, attention.head_dim)) for x in (q[0], torch.cat(keys)))
    return last_row_attention(*heads)
