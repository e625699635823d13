"""Tri-Shape (SCBench, arXiv 2412.10319): first keys, a window, and all keys for the last rows."""

import torch
import torch.nn.functional as F

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
    first_rows = torch.arange(0, num_tokens, TILE)  # [R], on the CPU: nothing waits for the device
    own = first_rows // TILE  # the tile on the diagonal
    begin = (first_rows + 1 - window).clamp(min=0) // TILE  # of the window of the first row
    begin[first_rows + TILE > num_tokens - num_last] = 0
    init = begin.clamp(max=-(-num_init // TILE))  # tiles of first keys before the window
    counts = init + own - begin + 1
    ends = F.pad(counts.cumsum(0), (1, 0))
    rows = torch.arange(len(first_rows)).repeat_interleave(counts)
    place = torch.arange(len(rows)) - ends[rows]
    tiles = torch.where(place < init[rows], place, place + (begin - init)[rows]) * TILE
    heads = torch.arange(num_heads)[:, None] * len(tiles)
    return BlockLists(
        query_tile=TILE,
        key_tile=TILE,
        row_starts=(ends + heads).int().to(device),
        tiles=tiles.int().to(device).repeat(num_heads),
    )
