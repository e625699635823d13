"""How much the last token attends to each key, and what it attends to most: one row, no map."""

import torch
from torch import Tensor

KEYS_PER_PART = 2**14
"""Keys that are brought to float32 at a time."""


def last_row_attention(q: Tensor, k: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
    """Attention of one query to all keys: a mean over the query heads, float32 `[S]`.

    Args:
        q: `[HQ, D]`.
        k: `[S, H, D]`; HQ is a multiple of H.
        key_mask: bool `[S]`, False where padded; None where nothing is.
    """
    groups = q.float().unflatten(0, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # [H, G, D]
    scores = torch.cat(
        [torch.einsum("hgd,shd->hgs", groups, part.float()) for part in k.split(KEYS_PER_PART)],
        dim=-1,
    )
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask, float("-inf"))
    return scores.softmax(-1).mean((0, 1))


def most_attended(scores: Tensor, vision: Tensor, *, ratio: float) -> Tensor:
    """Places of all text tokens, and of the vision tokens with the highest scores.

    The last token stays, whatever it is. Of equal scores the earlier stays.

    Args:
        scores: float `[T]`.
        vision: bool `[T]`.
        ratio: share of the vision tokens that stays, rounded down, one at least.

    Returns:
        int64 `[K]`, ascending.
    """
    kept = ~vision
    kept[-1] = True
    places = (vision & ~kept).nonzero()[:, 0]
    num_vision = int(vision.sum())
    count = kept_of(num_vision, ratio) - int(vision[-1])
    best = scores[places].argsort(descending=True, stable=True)[: max(count, 0)]
    kept[places[best]] = True
    return kept.nonzero()[:, 0]


def kept_of(count: int, ratio: float) -> int:
    """How many of so many tokens a ratio keeps: rounded down, one at least where there is one."""
    return min(count, max(1, int(ratio * count + 1e-9)))
