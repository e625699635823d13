"""The block order of the `released` preset: a 64-wide bitonic sorting network.

The network is not stable: which of several equally important blocks it keeps is decided by where
its compare-exchanges move them. So ties are reproduced by running the network itself, on all rows
at once.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_SLOTS = 64
NUM_KEPT = 32
"""Slots of the running list that survive the next chunk: no more blocks can be selected."""
LAST_STAGE = 6


class _Slots(NamedTuple):
    """A row of (importance, block + 1) pairs; an empty slot holds (0, 0)."""

    importance: Tensor  # [..., 64]
    block: Tensor  # [..., 64] int64


def bitonic_top(importance: Tensor, current: Tensor) -> Tensor:
    """The 32 first blocks of each row in the order of the released selection kernel.

    Args:
        importance: `[R, J, C]` float, of blocks 0 to C - 1 for R rows and J KV groups.
        current: `[R]` int64, the block of each row; later blocks are no candidates.

    Returns:
        `[R, J, 32]` int64, -1 in a slot that stayed empty. Cut it to the first n.
    """
    num_blocks = importance.shape[-1]
    blocks = torch.arange(num_blocks, device=importance.device)
    candidate = (blocks <= current[:, None])[:, None]  # [R, 1, C]
    fill = (0, -num_blocks % CHUNK_SLOTS)
    importance = F.pad(importance.masked_fill(~candidate, 0), fill)
    index = F.pad(((blocks + 1) * candidate).expand(-1, importance.shape[1], -1), fill)

    chunks = zip(
        torch.split(importance, CHUNK_SLOTS, dim=-1),
        torch.split(index, CHUNK_SLOTS, dim=-1),
        strict=True,
    )
    best = _sort(_Slots(*next(chunks)), descending=True)
    for i_chunk, chunk in enumerate(chunks, start=1):
        later = _sort(_Slots(*chunk), descending=False)
        # Descending, then ascending: again a bitonic sequence, so one last stage sorts it.
        joined = _Slots(
            *(
                torch.cat((kept[..., :NUM_KEPT], new[..., NUM_KEPT:]), dim=-1)
                for kept, new in zip(best, later, strict=True)
            )
        )
        merged = _stage(joined, LAST_STAGE, flip=_constant_flip(True, importance.device))
        # A row stops at its own chunk: merging empty slots would reorder its ties.
        reached = (current >= i_chunk * CHUNK_SLOTS)[:, None, None]
        best = _Slots(
            *(torch.where(reached, new, old) for new, old in zip(merged, best, strict=True))
        )
    return best.block[..., :NUM_KEPT] - 1


def _sort(slots: _Slots, *, descending: bool) -> _Slots:
    """Stages 1 to 5 in alternating directions, stage 6 in one direction."""
    device = slots.block.device
    position = torch.arange(CHUNK_SLOTS, device=device)
    for stage in range(1, LAST_STAGE):
        slots = _stage(slots, stage, flip=(position >> stage) % 2 == 1)
    return _stage(slots, LAST_STAGE, flip=_constant_flip(descending, device))


def _constant_flip(flip: bool, device: torch.device) -> Tensor:
    return torch.full((CHUNK_SLOTS,), flip, device=device)


def _stage(slots: _Slots, stage: int, *, flip: Tensor) -> _Slots:
    """Compare-exchanges at distances 2^(stage - 1) to 1. `flip` [64] bool: descending there."""
    for i_step in reversed(range(stage)):
        slots = _compare_exchange(slots, distance=2**i_step, flip=flip)
    return slots


def _compare_exchange(slots: _Slots, *, distance: int, flip: Tensor) -> _Slots:
    """Order slots i and i + distance. Equal pairs swap where `flip` is set, as in the kernel."""
    pairs = (-1, 2, distance)
    left, right = torch.unflatten(slots.importance, -1, pairs).unbind(-2)
    swap = (left > right) != torch.unflatten(flip, -1, pairs)[:, 0]

    def exchange(values: Tensor) -> Tensor:
        left, right = torch.unflatten(values, -1, pairs).unbind(-2)
        exchanged = torch.where(swap, right, left), torch.where(swap, left, right)
        return torch.stack(exchanged, dim=-2).flatten(-3)

    return _Slots(exchange(slots.importance), exchange(slots.block))
