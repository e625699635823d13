"""The plan of a tile shares its selection out: no pair is lost, none is walked twice."""

import pytest
import torch

from videonsa.ops.masks import ascending
from videonsa.ops.triton.index import row_tiles, uniform_index
from videonsa.ops.triton.selected import plan_tiles


def random_selection(num_rows, n, index, device):
    """`[R, 2, n]` flat blocks up to each row's own, the own one always among them."""
    generator = torch.Generator().manual_seed(n)
    own = index.row_block[:, None, None].cpu()
    chosen = (torch.rand(num_rows, 2, n, generator=generator) * (own + 1)).int()
    chosen[..., 0] = own[..., 0]
    chosen[::5, 1, 1:] = -1
    return ascending(chosen).to(device)


@pytest.mark.parametrize("min_shared", [1, 2, 4, 33])
@pytest.mark.parametrize(("tile", "n"), [(32, 4), (8, 1), (4, 6)])
def test_shared_and_scattered_blocks_are_the_selection(tile, n, min_shared, device):
    num_rows, size = 43, 4
    index = uniform_index(
        size, num_samples=1, num_rows=num_rows, first_row=9, num_keys=52, device=device
    )
    selected = random_selection(num_rows, n, index, device)
    tiles = row_tiles(index, tile)
    plan = plan_tiles(selected, tiles, index, min_shared=min_shared, block_n=size)
    for i_tile, first in enumerate(range(0, num_rows, tile)):
        rows = range(first, min(first + tile, num_rows))
        for head in range(2):
            check_tile(plan, selected, index, i_tile, rows, head, size, min_shared)


def check_tile(plan, selected, index, i_tile, rows, head, size, min_shared):
    current = int(index.row_block[rows.start])
    num, num_before = plan.num_shared[i_tile, head].tolist()
    starts = plan.start[i_tile, head, :num].tolist()
    shared = [start // size for start in starts]
    assert shared == sorted(set(shared))
    assert num_before == sum(block < current for block in shared)
    assert (plan.size[i_tile, head, :num] == size).all()
    pairs = set()
    for block, bits in zip(shared, plan.rows[i_tile, head, :num].tolist(), strict=True):
        of_block = {(row, block) for i, row in enumerate(rows) if bits >> i & 1}
        assert len(of_block) >= min_shared or block >= current
        pairs |= of_block
    count = 0
    for row in rows:
        left = plan.scattered[row, head, : plan.num_scattered[row, head]].tolist()
        assert plan.pair[row, head] == count
        count += len(left)
        assert not pairs & {(row, block) for block in left}
        assert all(block < current for block in left)
        pairs |= {(row, block) for block in left}
        wanted = [block for block in selected[row, head].tolist() if block >= 0]
        assert sorted(block for r, block in pairs if r == row) == wanted
    assert plan.tile_pairs[i_tile, head] == count
