"""The selection the other way round: for every block, the rows that chose it, in order.

Sorted, not counted by atomics: what is summed in the order of a list has the same bits every time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from videonsa.ops.triton.index import StreamIndex

ITEM_ROWS = 2048
"""Most rows of an item: a block that every row chose is shared out among many programs."""


class Inverse(NamedTuple):
    """Lists (one for each KV head and block) of rows, cut into items; all int32."""

    rows: Tensor  # [R * H * n] rows, list after list
    first_item: Tensor  # [lists + 1] cumulative; every list has an item
    item_list: Tensor  # [items] list of each item; lists beyond the last: none
    item_first: Tensor  # [items] first of its rows
    item_rows: Tensor  # [items] their number


def invert_selection(selected: Tensor | None, index: StreamIndex, *, num_kv_heads: int) -> Inverse:
    """Lists of the selection `[R, H, n]` (flat blocks, negative for none); None: empty lists."""
    num_blocks = len(index.block_start)
    num_lists = num_kv_heads * num_blocks
    device = index.block_start.device
    if selected is None:
        rows = torch.empty(0, dtype=torch.int32, device=device)
        list_start = torch.zeros(num_lists + 1, dtype=torch.int32, device=device)
    else:
        head = torch.arange(num_kv_heads, dtype=torch.int32, device=device)[:, None]
        lists = torch.where(selected >= 0, selected + head * num_blocks, num_lists)
        lists, place = lists.flatten().sort(stable=True)
        rows = (place // (num_kv_heads * selected.shape[-1])).int()
        every = torch.arange(num_lists + 1, dtype=torch.int32, device=device)
        list_start = torch.searchsorted(lists, every, out_int32=True)
    sizes = list_start.diff()
    num_items = ((sizes + ITEM_ROWS - 1) // ITEM_ROWS).clamp(min=1)
    last_item = num_items.cumsum(0, dtype=torch.int32)
    first_item = torch.cat([last_item.new_zeros(1), last_item])
    bound = len(rows) // ITEM_ROWS + num_lists
    item = torch.arange(bound, dtype=torch.int32, device=device)
    item_list = torch.searchsorted(last_item, item, right=True, out_int32=True)
    own = item_list.clamp(max=num_lists - 1)
    done = (item - first_item[own]) * ITEM_ROWS
    return Inverse(
        rows=rows,
        first_item=first_item,
        item_list=item_list,
        item_first=list_start[own] + done,
        item_rows=(sizes[own] - done).clamp(max=ITEM_ROWS),
    )
