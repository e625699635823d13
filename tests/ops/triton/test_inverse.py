"""The selection the other way round, against lists made one row at a time."""

import pytest
import torch

from videonsa.ops.triton import inverse
from videonsa.ops.triton.index import uniform_index
from videonsa.ops.triton.inverse import invert_selection

NUM_ROWS, HEADS, N, SIZE = 45, 2, 3, 4


@pytest.fixture
def index(device):
    """Of one sample of blocks of 4."""
    return uniform_index(
        SIZE, num_samples=1, num_rows=NUM_ROWS, first_row=0, num_keys=NUM_ROWS, device=device
    )


@pytest.fixture
def selected(device):
    """`[R, H, n]`: block 0 in most rows, some rows without any block, head 1 never in block 1."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(1, 12, (NUM_ROWS, HEADS, N), generator=generator)
    chosen[:, :, 0] = 0
    chosen[:, :, 2] = torch.where(chosen[:, :, 2] == chosen[:, :, 1], -1, chosen[:, :, 2])
    chosen[:, 1] = torch.where(chosen[:, 1] == 1, -1, chosen[:, 1])
    chosen[20:23] = -1
    return chosen.int().to(device)


def wanted_lists(selected, num_blocks):
    """List h * C + c: the rows whose head h chose block c."""
    lists = [[] for _ in range(HEADS * num_blocks)]
    for row, heads in enumerate(selected.tolist()):
        for head, blocks in enumerate(heads):
            for block in blocks:
                if block >= 0:
                    lists[head * num_blocks + block].append(row)
    return lists


def items_of(found, num_lists):
    """Rows of every item, by list; asserts that items of no list come last."""
    owners = found.item_list.tolist()
    real = [owner for owner in owners if owner < num_lists]
    assert owners[: len(real)] == real, "an item of no list among the others"
    items = [[] for _ in range(num_lists)]
    bounds = zip(real, found.item_first.tolist(), found.item_rows.tolist(), strict=False)
    for owner, first, num_rows in bounds:
        items[owner].append(found.rows[first : first + num_rows].tolist())
    return items


@pytest.mark.parametrize("item_rows", [1, 4, 2048])
def test_items_of_a_list_hold_its_rows_in_order(item_rows, index, selected, monkeypatch):
    monkeypatch.setattr(inverse, "ITEM_ROWS", item_rows)
    num_blocks = len(index.block_start)
    found = invert_selection(selected, index, num_kv_heads=HEADS)
    lists = wanted_lists(selected, num_blocks)
    assert [] in lists, "no block that nobody chose"
    for items, wanted in zip(items_of(found, len(lists)), lists, strict=True):
        assert [row for item in items for row in item] == wanted
        assert wanted == sorted(wanted)
        assert all(len(item) == item_rows for item in items[:-1])
        assert len(items) == max(1, -(-len(wanted) // item_rows))


def test_first_items_count_the_items_before_each_list(index, selected, monkeypatch):
    monkeypatch.setattr(inverse, "ITEM_ROWS", 4)
    num_lists = HEADS * len(index.block_start)
    found = invert_selection(selected, index, num_kv_heads=HEADS)
    counts = [len(items) for items in items_of(found, num_lists)]
    assert found.first_item.diff().tolist() == counts
    assert found.first_item[0] == 0
    assert found.first_item[-1] <= len(found.item_list)


def test_no_selection_gives_every_list_one_empty_item(index):
    num_lists = HEADS * len(index.block_start)
    found = invert_selection(None, index, num_kv_heads=HEADS)
    assert items_of(found, num_lists) == [[[]]] * num_lists
    assert len(found.rows) == 0


def test_number_of_items_depends_on_shapes_alone(index, selected):
    """The host sizes buffers and grids without waiting for the device."""
    numbers = {
        len(invert_selection(x, index, num_kv_heads=HEADS).item_list)
        for x in (selected, torch.zeros_like(selected), torch.full_like(selected, -1))
    }
    assert len(numbers) == 1


def test_all_fields_are_int32(index, selected):
    for name, x in invert_selection(selected, index, num_kv_heads=HEADS)._asdict().items():
        assert x.dtype == torch.int32, name
