"""What later steps have to know of a token in vLLM's cache: whether it is vision, and its frame.

vLLM tells a model which tokens of a step are vision, not which were in the steps before; after a
prefix cache hit it was another request that read them. So each slot of the cache has a mark, which
is written where the keys and values of the token are, and lives as long as they do. The first token
of a frame is marked with the tokens of the whole frame, of which a step may read a part.

Marks reach a step beside the features of an image or a video, in two more columns: vLLM cuts both
where it cuts the prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TEXT = -1
"""Of a text token."""
INSIDE = 0
"""Of a vision token that is not the first of its frame; that one has the size of the frame."""
COLUMNS = 2
"""Of a feature, for its mark: digits to a base that bfloat16 holds."""
_BASE = 256
MOST_TOKENS = _BASE**2 - 1
"""Of a frame."""


def with_marks(features: Tensor, sizes: Sequence[int]) -> Tensor:
    """Features of frames, each with its mark.

    Args:
        features: `[M, hidden]`.
        sizes: tokens of each frame.

    Returns:
        `[M, hidden + 2]`.
    """
    marks = torch.cat([_begun(size) for size in sizes]).to(features.device)
    digits = torch.stack([marks // _BASE, marks % _BASE], dim=1)
    return torch.cat([features, digits.to(features.dtype)], dim=1)


def _begun(size: int) -> Tensor:
    marks = torch.full((size,), INSIDE, dtype=torch.int32)
    marks[0] = size
    return marks


def without_marks(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[M, hidden]` and marks, int32 `[M]`, of features with marks."""
    digits = features[:, -COLUMNS:].int()
    return features[:, :-COLUMNS], digits[:, 0] * _BASE + digits[:, 1]


def new_marks(num_slots: int, device: torch.device) -> Tensor:
    """The marks of a cache, int32 `[slots]`."""
    return torch.full((num_slots,), TEXT, dtype=torch.int32, device=device)


def write_marks(marks: Tensor, slots: Tensor, new: Tensor) -> None:
    """Mark the tokens of a step.

    Args:
        marks: of the cache.
        slots: int64 `[T]`, where each token lies; negative ones are padding, of no slot.
        new: int32 `[T]`, theirs.
    """
    kept = slots >= 0
    marks[slots[kept]] = new[kept]


def marks_of(marks: Tensor, pages: Tensor, num_tokens: int, page: int) -> Tensor:
    """The marks of a request's first tokens, `[S]`.

    Args:
        marks: of the cache.
        pages: int `[n]`, those of the request in order.
        num_tokens: S.
        page: tokens in one.
    """
    needed = pages[: -(-num_tokens // page)].long()
    found: Tensor = marks.unflatten(0, (-1, page))[needed].flatten()[:num_tokens]
    return found


def frame_sizes(marks: Tensor) -> list[int]:
    """Vision tokens of each frame; the last one may still be arriving.

    Args:
        marks: `[S]`, of a request.
    """
    sizes: list[int] = marks[marks > INSIDE].tolist()
    return sizes
