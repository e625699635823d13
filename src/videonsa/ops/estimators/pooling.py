"""What estimators of whole blocks share: pooling, maps of blocks, cumulative mass."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.block_lists import ENTRIES_PER_CHUNK

CHUNK_BYTES = 2**30
"""What an estimator may hold at a time, beside its inputs and the map of blocks it gives."""


def estimate_bytes(num_tokens: int, num_heads: int, size: int) -> int:
    """The most that an estimate holds beside q and k, from scores to the lists of blocks."""
    of_head = num_blocks(num_tokens, size) ** 2
    blocks = num_heads * of_head
    chunk = min(CHUNK_BYTES, 12 * size * num_tokens * num_heads)
    # The map without what lies above its diagonal, first keys of the rest; places in chunks.
    lists = 3 * blocks + 24 * min(blocks, max(ENTRIES_PER_CHUNK, of_head))
    return blocks + max(chunk, lists)


def num_blocks(num_tokens: int, size: int) -> int:
    """Blocks of `size` tokens; the last one may be shorter."""
    return -(-num_tokens // size)


def block_means(x: Tensor, size: int) -> Tensor:
    """Means of the blocks of `[T, H, D]`, float32 `[H, R, D]`; the last one's of what it has."""
    whole = len(x) // size * size
    means: Tensor = x[:whole].unflatten(0, (-1, size)).mean(1, dtype=torch.float32)
    if whole < len(x):
        means = torch.cat([means, x[whole:].mean(0, keepdim=True, dtype=torch.float32)])
    return means.transpose(0, 1)


def block_sums(x: Tensor, size: int) -> Tensor:
    """Sums of `size` neighbours of `[..., T]`: `[..., R]`."""
    padded: Tensor = F.pad(x, (0, -x.shape[-1] % size))
    sums: Tensor = padded.unflatten(-1, (-1, size)).sum(-1)
    return sums


def causal_blocks(rows: range, columns: int, *, device: torch.device) -> Tensor:
    """Bool `[len(rows), columns]`: blocks of keys of which a block of queries sees any."""
    row = torch.arange(rows.start, rows.stop, device=device)
    return row[:, None] >= torch.arange(columns, device=device)


def until_reached(mass: Tensor, target: Tensor | float) -> Tensor:
    """Bool `[..., N]`: the first entries of `mass` whose sum reaches a target, and no more.

    The entry that crosses it is one of them. An infinite target takes all.
    """
    before = F.pad(mass.cumsum(-1)[..., :-1], (1, 0))
    return before < target


def share(of: float) -> float:
    """A share of mass as `until_reached` wants it: all, whatever the rounding, from 1 on."""
    return of if of < 1 else math.inf
