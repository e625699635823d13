"""The lists that attention over block lists is timed with."""

import torch

from benchmarks.block_sparse import NUM_INIT, NUM_LOCAL, _offsets, vertical_slash_lists
from videonsa.ops.block_sparse_reference import attended


def test_slashes_are_whole_tiles_and_columns_are_single():
    num_tokens, num_slashes = 640, 132
    lists = vertical_slash_lists(((40, num_slashes),), num_tokens, device=torch.device("cpu"))
    offsets = _offsets(num_slashes, num_tokens, torch.Generator().manual_seed(0))
    assert len(offsets) > NUM_LOCAL
    mask = attended(lists, 0, 0, 10, num_tokens=num_tokens)
    assert mask[:, :NUM_INIT].tril().sum() == mask[:, :NUM_INIT].sum() > 0
    rows = torch.arange(num_tokens)
    for offset in offsets.tolist():
        assert all(mask[i, i - offset] for i in rows[offset + 64 :])
    columns = lists.columns.long()
    assert len(columns) <= 40 and mask[-1, columns].all()
