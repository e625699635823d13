"""What `BlockLists` of aligned blocks say, as sets."""

import torch


def blocks_of(lists):
    """For each head, the set of (row, column) of its blocks."""
    return [
        {
            (row, key // lists.key_tile)
            for row in range(lists.num_query_tiles)
            for key in lists.tiles[starts[row] : starts[row + 1]].tolist()
        }
        for starts in lists.row_starts.tolist()
    ]


def dense(q, k, v):
    """Causal attention of q `[T, HQ, D]` to k, v `[T, H, D]`."""
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    return out.transpose(0, 1)
