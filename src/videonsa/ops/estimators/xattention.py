"""XAttention (arXiv 2503.16428): blocks of keys by sums of antidiagonals of their scores.

The score matrix is cut into tiles of S x S, S being the stride. The sum of a tile's antidiagonal
stands for the tile: it meets every row, every column and every second diagonal. A softmax over the
tiles of a row, up to its own, gives the mass of each; a block of B x B has the sum of its tiles.
Each row of blocks keeps the fewest blocks that reach a share `threshold` of its mass, the first
block and its own among them.

An antidiagonal is one product of S * D numbers: S queries side by side with S keys side by side,
one of the two in reverse order (here the keys, which are fewer).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.block_lists import BlockLists, from_mask
from videonsa.ops.estimators.pooling import (
    CHUNK_BYTES,
    causal_blocks,
    num_blocks,
    share,
    until_reached,
)

ROWS_PER_CHUNK = 128
"""Blocks of queries at a time: what they cannot see of the keys behind them is half a chunk."""


@torch.no_grad()
def xattention_lists(
    q: Tensor, k: Tensor, *, stride: int = 16, threshold: float = 0.9, block_size: int = 128
) -> BlockLists:
    """The blocks of keys that each block of queries attends to, per query head.

    Nothing waits for the device. Beside the map of blocks `[HQ, R, R]`, R = T / B, memory is linear
    in T: heads and rows of blocks go through in chunks.

    Args:
        q: `[T, HQ, D]` of one sample, rotated.
        k: `[T, H, D]`.
        stride: S, a divisor of B. The time goes with T^2 / S.
        threshold: share of each row's mass to keep, above 0; from 1 on everything is kept.
        block_size: B, tokens of a block: 64 or 128.
    """
    return from_mask(_block_map(q, k, stride, threshold, block_size), block_size)


def _block_map(q: Tensor, k: Tensor, stride: int, threshold: float, block_size: int) -> Tensor:
    """Bool `[HQ, R, R]`, causal."""
    num_tokens, num_heads, dim = q.shape
    blocks = num_blocks(num_tokens, block_size)
    mask = torch.zeros((num_heads, blocks, blocks), dtype=torch.bool, device=q.device)
    group = num_heads // k.shape[1]
    tiles = blocks * block_size // stride
    # Scores, their softmax and a float32 copy of the queries; the ranking of the blocks.
    bytes_per_row = group * (block_size * (8 * tiles // stride + 8 * dim) + 32 * blocks)
    rows_per_chunk = max(1, min(ROWS_PER_CHUNK, CHUNK_BYTES // bytes_per_row))
    for kv_head in range(k.shape[1]):
        heads = slice(kv_head * group, (kv_head + 1) * group)
        keys = _side_by_side(k[:, kv_head : kv_head + 1], stride, tiles, reverse=True)[0]
        for first in range(0, blocks, rows_per_chunk):
            rows = range(first, min(first + rows_per_chunk, blocks))
            queries = q[rows.start * block_size : rows.stop * block_size, heads]
            seen = keys[: rows.stop * block_size // stride]
            mass = _block_mass(queries, seen, rows, stride, block_size)
            chosen = _highest_blocks(mass, rows, threshold)
            mask[heads, rows.start : rows.stop, : rows.stop] = chosen
    return mask


def _block_mass(q: Tensor, keys: Tensor, rows: range, stride: int, block_size: int) -> Tensor:
    """How much of the softmax over tiles lies in each block: float32 `[G, len(rows), C]`.

    Args:
        q: `[t, G, D]`, the queries of some rows of blocks.
        keys: `[n, S * D]`, reversed, the tiles of all C blocks that one of these rows sees.
        rows: their numbers.
        stride: S.
        block_size: B.
    """
    per_block = block_size // stride
    num_rows = len(rows) * per_block
    queries = _side_by_side(q, stride, num_rows)
    scale = (stride * keys.shape[1]) ** -0.5  # 1 / (S * sqrt(D))
    scores = _products(queries.flatten(0, 1), keys).mul_(scale).unflatten(0, (-1, num_rows))
    # Of keys, these rows see all tiles before their own. Zeros behind the last token lie in tiles
    # that no query sees, but as queries they are no mass of the last row.
    future = ~causal_blocks(range(num_rows), num_rows, device=q.device)
    scores[..., -num_rows:].masked_fill_(future, -torch.inf)
    mass = scores.softmax(-1)
    mass[:, num_blocks(len(q), stride) :] = 0
    by_block: Tensor = mass.unflatten(1, (-1, per_block)).unflatten(-1, (-1, per_block))
    return by_block.sum((2, 4))


def _side_by_side(x: Tensor, stride: int, tiles: int, *, reverse: bool = False) -> Tensor:
    """`[T, H, D]` with the numbers of S tokens in a row, zeros after the last: `[H, tiles, S * D]`.

    The tokens of a row in reverse order where it is asked for.
    """
    missing = tiles * stride - len(x)
    padded = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    by_tile: Tensor = padded.unflatten(0, (tiles, stride))  # [tiles, S, H, D]
    return (by_tile.flip(1) if reverse else by_tile).permute(2, 0, 1, 3).flatten(2)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` in float32 of `[M, K]` and `[N, K]`, which need not be."""
    if a.is_cuda and a.element_size() == 2:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.T.float()


def _highest_blocks(mass: Tensor, rows: range, threshold: float) -> Tensor:
    """The fewest blocks of each row that reach the threshold: bool `[G, len(rows), C]`, as mass.

    The first and the row's own are taken first, then those of highest mass.
    """
    own = torch.arange(rows.start, rows.stop, device=mass.device)[:, None]
    column = torch.arange(mass.shape[-1], device=mass.device)
    seen, always = column <= own, (column == 0) | (column == own)
    ranked = mass.masked_fill(always, torch.inf).masked_fill(~seen, -1)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    descending = mass.gather(-1, order)
    target = share(threshold) * descending.sum(-1, keepdim=True)
    needed = until_reached(descending, target)
    return (torch.zeros_like(needed).scatter_(-1, order, needed) | always) & seen
