"""Random block lists and what they mean, pair by pair."""

from dataclasses import replace

import torch

from videonsa.ops.block_sparse import BlockLists


def on(device, lists):
    """The same lists on a device."""
    names = ("row_starts", "tiles", "columns", "column_starts")
    tensors = {name: getattr(lists, name) for name in names}
    return replace(lists, **{x: None if y is None else y.to(device) for x, y in tensors.items()})


def random_lists(
    num_tokens, *, heads, query_tile=64, key_tile=64, density=0.5, columns=0, seed=0, room=0
):
    """Tiles at any offset with gaps between, always the row's own; some rows have that alone."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(high):
        return int(torch.randint(high, (), generator=generator))

    starts, tiles = [], []
    for _ in range(heads):
        starts.append([len(tiles)])
        for first in range(0, num_tokens, query_tile):
            last = min(first + query_tile, num_tokens)
            row, key = [], drawn(key_tile)
            while density and key <= last - key_tile:
                if torch.rand((), generator=generator) < density:
                    row.append(key)
                    key += key_tile
                key += drawn(key_tile // 2)
            behind = row[-1] + key_tile if row else max(0, last - key_tile - drawn(key_tile))
            tiles += [*row, *range(behind, last, key_tile)]
            starts[-1].append(len(tiles))
        tiles += [-(10**6)] * room  # claimed by no row
    single, column_starts = [], [0]
    for _ in range(heads):
        single += torch.randperm(num_tokens, generator=generator)[:columns].sort().values.tolist()
        column_starts.append(len(single))
    return BlockLists(
        query_tile=query_tile,
        key_tile=key_tile,
        row_starts=torch.tensor(starts, dtype=torch.int32),
        tiles=torch.tensor(tiles, dtype=torch.int32),
        columns=torch.tensor(single, dtype=torch.int32) if columns else None,
        column_starts=torch.tensor(column_starts, dtype=torch.int32) if columns else None,
    )


def pairs_of(lists, num_tokens, *, keeps=None):
    """bool [HQ, T, T], row by row; `keeps(i, j)` of tensors says which causal pairs count."""
    keys = torch.arange(num_tokens)
    mask = torch.zeros(lists.num_heads, num_tokens, num_tokens, dtype=torch.bool)
    for head, starts in enumerate(lists.row_starts.tolist()):
        single = []
        if lists.columns is not None:
            begin, end = lists.column_starts[head : head + 2].tolist()
            single = lists.columns[begin:end].tolist()
        for i in range(num_tokens):
            begin, end = starts[i // lists.query_tile], starts[i // lists.query_tile + 1]
            for first in lists.tiles[begin:end].tolist():
                mask[head, i, first : first + lists.key_tile] = True
            mask[head, i, single] = True
    mask &= keys <= keys[:, None]
    return mask if keeps is None else mask & keeps(keys[:, None], keys)


def written_out(q, k, v, mask, *, scale=None):
    """Softmax over the pairs of a mask in float64: output and LSE."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    scores = (q @ k.mT) * (q.shape[2] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~mask, -torch.inf)
    out = (scores.softmax(-1).nan_to_num(0) @ v).transpose(0, 1)
    return out, scores.logsumexp(-1).T
