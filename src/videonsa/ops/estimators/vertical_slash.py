"""Vertical-slash (MInference, arXiv 2407.02490): single columns, and tiles along some diagonals.

A head keeps the columns and the diagonals (offsets o = i - j) that its last rows attend to most.
Query tile [m, m + 64) has for each offset the whole key tile [m - o, m - o + 64), not the diagonal
alone, so tiles begin anywhere. Where tiles overlap or touch they become one range, which holds a
whole number of tiles: walking from the farthest offset to the nearest, the tile behind [s, s + 64)
begins at s + 64 if the next one would begin there or before. A tile before the first key is moved
to it. So each tile decides where the next one begins, alike in all query tiles; the walks of all
query tiles are made together, by doubling steps.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.block_lists import BlockLists, check_num_tiles

TILE = 64
"""Rows of a query tile, and keys of a key tile."""
NUM_PROBES = 64
"""Last rows whose attention is computed."""
NUM_INIT = 30
"""First columns, which every head keeps; no head has fewer columns."""
NUM_LOCAL = 100
"""Nearest offsets, which every head keeps."""
LEAST_OFFSETS = 50
"""Of a head."""
SCORES_PER_CHUNK = 2**25
"""Scores held at a time: 128 MiB in float32."""
BYTES_PER_WALK = 6 * 8
"""Held for each tile of these heads while the walks to all of them are made."""


def vertical_slash_lists(q: Tensor, k: Tensor, sizes: Sequence[tuple[int, int]]) -> BlockLists:
    """The keys of each query tile, by the attention of the last rows.

    Heads go in chunks: beside the lists, which may hold every tile, memory is that of the scores
    and tiles of a chunk. For each chunk the host waits for the device, which counts the tiles.

    Args:
        q: `[T, HQ, D]`.
        k: `[T, H, D]`; query head h reads KV head h // (HQ / H).
        sizes: how many columns and how many offsets each query head keeps, HQ pairs; at least 30
            and 50, at most T.
    """
    num_tokens, num_heads, _ = q.shape
    at_once = heads_at_once(num_tokens)
    kv_heads = torch.arange(num_heads, device=k.device) // (num_heads // k.shape[1])
    parts = []
    for first in range(0, num_heads, at_once):
        heads = slice(first, first + at_once)
        vertical, slash = line_scores(q[-NUM_PROBES:, heads], k[:, kv_heads[heads]])
        columns = kept_columns(vertical, [columns for columns, _ in sizes[heads]])
        offsets = kept_offsets(slash, [offsets for _, offsets in sizes[heads]])
        parts.append(_Part.of(columns, offsets))
    return _joined(parts)


def lists_of_lines(columns: Tensor, offsets: Tensor) -> BlockLists:
    """The keys of each query tile, by the columns and offsets that each head keeps.

    Args:
        columns: bool `[HQ, T]`.
        offsets: bool `[HQ, T]`.
    """
    return _joined([_Part.of(columns, offsets)])


def heads_at_once(num_tokens: int) -> int:
    """Query heads of a chunk."""
    return max(1, SCORES_PER_CHUNK // (NUM_PROBES * num_tokens))


@torch.no_grad()
def line_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of the last rows, summed down each column and along each diagonal.

    Args:
        q: `[L, n, D]`, the last L rows of T, L <= T, of n query heads.
        k: `[T, n, D]`, what each of them reads.

    Returns:
        `[n, T]` by key, and `[n, T]` by offset; at least float32. Diagonals that begin left of the
        first key are sums of fewer rows.
    """
    num_rows, num_tokens = len(q), len(k)
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("lnd,tnd->nlt", q.to(dtype) * q.shape[-1] ** -0.5, k.to(dtype))
    later = torch.ones(num_rows, num_rows, dtype=torch.bool, device=q.device).triu(1)
    scores[..., -num_rows:].masked_fill_(later, -torch.inf)
    attention = scores.softmax(-1)
    del scores
    # Each row begins one entry further on than the row before: then diagonals are columns.
    padded = F.pad(attention, (num_rows - 1, 0))
    strides = (padded.stride(0), padded.stride(1) + 1, 1)
    diagonals = padded.as_strided((len(padded), num_rows, num_tokens), strides).sum(1)
    return attention.sum(1), diagonals.flip(-1)


def kept_columns(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Which columns each head keeps: bool `[n, T]` of its scores `[n, T]`, the first 30 always."""
    return _largest(scores, [max(size, NUM_INIT) for size in sizes], num_first=NUM_INIT)


def kept_offsets(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Which offsets each head keeps: bool `[n, T]` of its scores `[n, T]`, the nearest first."""
    return _largest(scores, [max(size, LEAST_OFFSETS) for size in sizes], num_first=NUM_LOCAL)


def _largest(scores: Tensor, sizes: Sequence[int], *, num_first: int) -> Tensor:
    """The largest of each row, where the first ones count as larger than all others, in order."""
    num_tokens = scores.shape[1]
    first = torch.arange(min(num_first, num_tokens), 0, -1, device=scores.device)
    scores = scores.clone()
    scores[:, : len(first)] = first + NUM_PROBES  # more than any sum of the attention of rows
    found = scores.topk(min(max(sizes), num_tokens), dim=1).indices
    ranks = torch.arange(found.shape[1], device=scores.device)
    kept = ranks < torch.tensor(sizes, device=scores.device)[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, found, kept)


class _Part(NamedTuple):
    """Of some heads."""

    tiles: Tensor  # [N] int32
    row_starts: Tensor  # [n, R + 1] int64, into these tiles
    columns: Tensor  # [n, T] bool

    @classmethod
    def of(cls, columns: Tensor, offsets: Tensor) -> Self:
        """From the lines kept, bool `[n, T]` each."""
        tiles, row_starts = _tiles(offsets)
        return cls(tiles.int(), row_starts, columns)


def _joined(parts: Sequence[_Part]) -> BlockLists:
    row_starts, before = [], 0
    for part in parts:
        row_starts.append(part.row_starts + before)
        before += len(part.tiles)
        check_num_tiles(before)
    columns = [part.columns.nonzero()[:, 1] for part in parts]
    counts = torch.cat([part.columns.sum(1) for part in parts])
    return BlockLists(
        query_tile=TILE,
        key_tile=TILE,
        row_starts=torch.cat(row_starts).int(),
        tiles=torch.cat([part.tiles for part in parts]),
        columns=torch.cat(columns).int(),
        column_starts=F.pad(counts.cumsum(0), (1, 0)).int(),
    )


def _tiles(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The key tiles of all query tiles, int64 `[N]`, and where those of each begin, `[n, R + 1]`.

    Args:
        offsets: bool `[n, T]`, those kept.
    """
    num_heads, num_tokens = offsets.shape
    following = _following_tiles(offsets)
    first_rows = torch.arange(0, num_tokens, TILE, device=offsets.device)  # [R]
    num_bits = (len(first_rows) + 1).bit_length()  # no walk is longer than R + 1 tiles
    heads = torch.arange(num_heads, device=offsets.device)[:, None] * following.shape[1]
    # As if the tile that ends before the first key were the last one walked over.
    starts = (first_rows + 2 * TILE + heads).flatten()
    jump = (following + heads).flatten()  # one step, then two, four, ...
    counts = (following > 0).long().flatten()
    for _ in range(num_bits):
        counts, jump = counts + counts[jump], jump[jump]
    counts = counts[starts]  # tiles of each query tile
    ends = counts.cumsum(0)
    query_tiles = torch.arange(len(counts), device=offsets.device).repeat_interleave(counts)
    steps = torch.arange(len(query_tiles), device=offsets.device) - (ends - counts)[query_tiles] + 1
    places, jump = starts[query_tiles], (following + heads).flatten()
    for bit in range(num_bits):
        places = torch.where((steps & 1 << bit) > 0, jump[places], places)
        jump = jump[jump]
    rows = first_rows.repeat(num_heads)[query_tiles]
    tiles = rows + TILE - places % following.shape[1]
    row_starts = F.pad(ends, (1, 0)).unfold(0, len(first_rows) + 1, len(first_rows)).clone()
    row_starts[:, -1] -= (tiles[row_starts[:, -1] - 1] >= num_tokens).long()
    return tiles, row_starts


def _following_tiles(offsets: Tensor) -> Tensor:
    """Behind a tile at each place, where the next one begins: int64 `[n, T + 128]`, 0 for no more.

    Place p is the first key m + 64 - p of query tile m: offset p - 64, from the farthest to those
    behind the diagonal.

    Args:
        offsets: bool `[n, T]`, those kept.
    """
    kept = F.pad(offsets, (TILE, TILE))
    places = torch.arange(kept.shape[1], device=offsets.device)
    nearer = torch.where(kept, places, 0).cummax(1).values
    nearer = F.pad(nearer[:, :-1], (1, 0))  # the place kept next behind each
    return torch.where(nearer > 0, torch.minimum(places - TILE, nearer), 0)
