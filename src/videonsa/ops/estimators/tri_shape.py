"""Tri-Shape (SCBench, arXiv 2412.10319): first keys, a window, and all keys for the last rows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.block_lists import BlockLists

TILE = 128
"""Rows of a query tile, and keys of a key tile."""


def tri_shape_lists(
    num_tokens: int,
    num_heads: int,
    *,
    num_init: int,
    window: int,
    num_last: int,
    device: torch.device,
) -> BlockLists:
    """The aligned key tiles that hold what rows attend to.

    The same three numbers, given to `block_sparse_attention`, trim their edges to the token.

    Args:
        num_tokens: T.
        num_heads: HQ, which all have the same.
        num_init: first keys of every row.
        window: keys up to and including its own, at least 1.
        num_last: last rows, which attend to all keys.
        device: of the lists.
    """
    # Their number is counted on the CPU, so that nothing waits for the device.
    shape = (num_tokens, num_init, window, num_last)
    num_tiles = int(_tiles_of_rows(*shape, device=torch.device("cpu")).counts.sum())
    begin, init, counts = _tiles_of_rows(*shape, device=device)
    ends = F.pad(counts.cumsum(0), (1, 0))
    rows = torch.arange(len(counts), device=device)
    rows = rows.repeat_interleave(counts, output_size=num_tiles)
    place = torch.arange(num_tiles, device=device) - ends[rows]
    tiles = torch.where(place < init[rows], place, place + (begin - init)[rows]) * TILE
    heads = torch.arange(num_heads, device=device)[:, None] * num_tiles
    return BlockLists(
        query_tile=TILE,
        key_tile=TILE,
        row_starts=(ends + heads).int(),
        tiles=tiles.int().repeat(num_heads),
    )


class _Tiles(NamedTuple):
    """Of each query tile, int64 `[R]`."""

    begin: Tensor
    """The first tile of the window."""
    init: Tensor
    """Tiles of first keys before it."""
    counts: Tensor
    """Both, up to the tile on the diagonal."""


def _tiles_of_rows(
    num_tokens: int, num_init: int, window: int, num_last: int, *, device: torch.device
) -> _Tiles:
    first_rows = torch.arange(0, num_tokens, TILE, device=device)
    begin = (first_rows + 1 - window).clamp(min=0) // TILE  # of the window of the first row
    begin = torch.where(first_rows + TILE > num_tokens - num_last, 0, begin)
    init = begin.clamp(max=-(-num_init // TILE))
    return _Tiles(begin, init, init + first_rows // TILE - begin + 1)
