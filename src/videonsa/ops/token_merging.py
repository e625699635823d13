"""Tokens that leave a frame are merged into those most like them that stay."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES_AT_ONCE = 2**24
"""Of pairs of tokens; 64 MB in float32."""


def merge_into_nearest(features: Tensor, kept: Tensor) -> Tensor:
    """Each token that leaves is added to the nearest of its frame that stays, an average (VScan).

    Nearest is by cosine; a token that c tokens are added to becomes (itself + their sum) / (1 + c).
    Some rows of some frames at a time; the order of sums does not depend on chance.

    Args:
        features: `[F, N, D]`, any floating dtype.
        kept: int64 `[F, K]`, the places of those that stay in each frame.

    Returns:
        `[F, K, D]` in the dtype of `features`, computed in float32.
    """
    num_kept = max(kept.shape[1], 1)
    num_rows = max(1, min(features.shape[1], SIMILARITIES_AT_ONCE // num_kept))
    num_frames = max(1, SIMILARITIES_AT_ONCE // (num_kept * num_rows))
    pairs = zip(features.split(num_frames), kept.split(num_frames), strict=True)
    return torch.cat([_merge_frames(*pair, num_rows=num_rows) for pair in pairs])


def _merge_frames(features: Tensor, kept: Tensor, *, num_rows: int) -> Tensor:
    own = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1])).float()
    directions = F.normalize(own, dim=-1).transpose(1, 2)  # [F, D, K]
    leaves = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    leaves.scatter_(1, kept, False)
    sums, counts = own, torch.ones_like(own[..., :1])
    numbers = torch.arange(kept.shape[1], device=features.device)
    for rows, leave in zip(features.split(num_rows, 1), leaves.split(num_rows, 1), strict=True):
        rows = rows.float()
        nearest = (F.normalize(rows, dim=-1) @ directions).argmax(-1)  # [F, n]
        added = ((nearest[..., None] == numbers) & leave[..., None]).float()  # [F, n, K]
        # A product, not index_add: its sums are the same each time on a GPU too.
        sums = sums + added.transpose(1, 2) @ rows
        counts = counts + added.sum(1)[..., None]
    return (sums / counts).to(features.dtype)


def add_mean_of_nearest(features: Tensor, keys: Tensor, targets: Tensor) -> Tensor:
    """To each target the mean of the tokens is added whose keys are most like its key (VisionZip).

    Alike is by cosine. The order of sums does not depend on chance.

    Args:
        features: `[F, N, hidden]`, any floating dtype: the targets of each frame, and all tokens
            that are merged into them.
        keys: `[F, N, D]`, of the same tokens.
        targets: int64 `[F, C]`, the places of the targets of each frame.

    Returns:
        `[F, C, hidden]` in the dtype of `features`, computed in float32. A target that is nearest
        to none is as it was.
    """
    index = targets[..., None]
    own = features.gather(1, index.expand(-1, -1, features.shape[-1])).float()
    directions = F.normalize(keys.float(), dim=-1)
    of_targets = directions.gather(1, index.expand(-1, -1, directions.shape[-1]))
    nearest = (directions @ of_targets.transpose(1, 2)).argmax(-1)  # [F, N]
    merged = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    merged.scatter_(1, targets, False)
    numbers = torch.arange(targets.shape[1], device=features.device)
    assigned = ((nearest[..., None] == numbers) & merged[..., None]).float()  # [F, N, C]
    counts = assigned.sum(1)[..., None].clamp(min=1)
    means = assigned.transpose(1, 2) @ features.float() / counts
    return (own + means).to(features.dtype)
