"""Block-sparse attention as `BlockLists` says it, with explicit masks, in float32 or float64.

Slow, obvious and independent of the kernel. It walks heads, and query tiles in chunks, so that
memory grows with the keys and not with rows times keys.
"""

import torch
from torch import Tensor

from videonsa.ops.block_lists import BlockLists, Trim
from videonsa.ops.masks import causal
from videonsa.ops.products import masked_scores, masked_sum

SCORES_PER_CHUNK = 2**24
"""Scores held at a time: 64 MiB in float32."""


def block_sparse_reference(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, *, trim: Trim | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and LSE of `block_sparse_attention`, which has checked the arguments.

    Args:
        q: `[T, HQ, D]`.
        k: `[T, H, D]`.
        v: `[T, H, D]`.
        lists: of HQ heads.
        trim: which pairs of the lists count. Default: all causal ones.
        scale: of the scores.

    Returns:
        `[T, HQ, D]` in the dtype of q, and `[T, HQ]` float32.
    """
    num_tokens, num_heads, _ = q.shape
    group = num_heads // k.shape[1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    tiles_of_chunk = max(1, SCORES_PER_CHUNK // (num_tokens * lists.query_tile))
    heads, lses = [], []
    for head in range(num_heads):
        keys, values = (x[None, None, :, head // group].to(dtype) for x in (k, v))
        parts = []
        for first in range(0, lists.num_query_tiles, tiles_of_chunk):
            last = min(first + tiles_of_chunk, lists.num_query_tiles)
            mask = attended(lists, head, first, last, num_tokens=num_tokens, trim=trim)
            rows = q[first * lists.query_tile : last * lists.query_tile, head].to(dtype) * scale
            parts.append(_attend(rows, keys, values, mask))
        out, lse = (torch.cat(x) for x in zip(*parts, strict=True))
        heads.append(out)
        lses.append(lse)
    return torch.stack(heads, 1).to(q.dtype), torch.stack(lses, 1).float()


def attended(
    lists: BlockLists,
    head: int,
    first: int,
    last: int,
    *,
    num_tokens: int,
    trim: Trim | None = None,
) -> Tensor:
    """Which keys the rows of query tiles [first, last) of a head attend to: bool `[rows, T]`."""
    device = lists.tiles.device
    columns = torch.zeros(num_tokens, dtype=torch.bool, device=device)
    if lists.columns is not None and lists.column_starts is not None:
        start, end = lists.column_starts[head : head + 2].tolist()
        columns[lists.columns[start:end].long()] = True
    masks = []
    for tile in range(first, last):
        mask = columns.clone()
        start, end = lists.row_starts[head, tile : tile + 2].tolist()
        for key in lists.tiles[start:end].tolist():
            mask[key : key + lists.key_tile] = True
        masks.append(mask)
    keys = torch.arange(num_tokens, device=device)
    rows = keys[first * lists.query_tile : last * lists.query_tile]
    seen = torch.stack(masks).repeat_interleave(lists.query_tile, 0)[: len(rows)]
    seen = seen & causal(rows, keys)
    if trim is None:
        return seen
    near = rows[:, None] - keys < trim.window
    is_last = rows[:, None] >= num_tokens - trim.num_last
    return seen & (near | (keys < trim.num_init) | is_last)


def _attend(rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[r, D]`, already scaled, over `[1, 1, S, D]`: output `[r, D]` and LSE `[r]`."""
    scores = masked_scores(rows[None, None, None], keys, mask)
    empty = ~mask.any(-1)
    out = masked_sum(scores.softmax(-1), values, mask)[0, 0, 0].masked_fill(empty[:, None], 0)
    return out, scores.logsumexp(-1)[0, 0, 0].masked_fill(empty, -torch.inf)
