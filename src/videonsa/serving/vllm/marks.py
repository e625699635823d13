"""What later steps have to know of a token in vLLM's cache: whether it is vision, and of which frame.

vLLM tells a model which tokens of a step are vision, not which were in the steps before; after a
prefix cache hit it was another request that read them. So each slot of the cache has a mark, written
where the keys and values of the token are written, that lives as long as they do.
"""

import torch
from torch import Tensor

TEXT = -1
"""In place of row and column of a text token."""


def new_marks(num_slots: int, device: torch.device) -> Tensor:
    """The marks of a cache: int32 `[slots, 2]`, row and column of position ids of vision tokens."""
    return torch.full((num_slots, 2), TEXT, dtype=torch.int32, device=device)


def write_marks(marks: Tensor, slots: Tensor, positions: Tensor, is_vision: Tensor) -> None:
    """Mark the tokens of a step.

    Args:
        marks: of the cache.
        slots: int64 `[T]`, where each token lies; negative ones are padding, of no slot.
        positions: int64 `[3, T]` position ids: time, row, column.
        is_vision: bool `[T]`.
    """
    values = torch.where(is_vision[:, None], positions[1:].T, TEXT).to(marks.dtype)
    kept = slots >= 0
    marks[slots[kept]] = values[kept]


def marks_of(marks: Tensor, pages: Tensor, num_tokens: int, page: int) -> Tensor:
    """The marks of a request's first tokens, `[S, 2]`.

    Args:
        marks: of the cache.
        pages: int `[n]`, those of the request in order.
        num_tokens: S.
        page: tokens in one.
    """
    needed = pages[: -(-num_tokens // page)].long()
    return marks.unflatten(0, (-1, page))[needed].flatten(0, 1)[:num_tokens]


def frame_sizes(marks: Tensor) -> list[int]:
    """Vision tokens of each frame; the last one may still be arriving.

    Rows and columns of a frame ascend in the order of its tokens, the first of the next frame
    begins anew; between two images there is text.

    Args:
        marks: `[S, 2]`, of a request.
    """
    vision = marks[:, 0] != TEXT
    row, column = marks.unbind(-1)
    onward = (row[1:] > row[:-1]) | ((row[1:] == row[:-1]) & (column[1:] > column[:-1]))
    begins = vision.clone()
    begins[1:] &= ~(onward & vision[:-1])
    number = begins.cumsum(0)[vision]
    return number.bincount()[1:].tolist() if len(number) else []
