"""Which keys each tile of query rows attends to: lists of key tiles, and of single columns."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.errors import UsageError

TILE_SIZES = (64, 128)
MOST_TILES = 2**31 - 1
"""Of all heads: what the starts of rows can count."""
ENTRIES_PER_CHUNK = 2**23
"""Of a mask, or tiles, that are worked on at a time: 64 MiB for each of some buffers."""


class Trim(NamedTuple):
    """Which causal pairs of the lists count, to the token: the others of a tile are left out."""

    num_init: int
    """Key j counts where j < num_init,"""
    window: int
    """or where i - j < window: the last `window` keys, the row's own among them,"""
    num_last: int
    """or where row i is one of the last `num_last` of the sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLists:
    """Which keys each tile of query rows attends to, per query head; of one sample of T tokens.

    Row i of query tile r (rows [r * query_tile, (r + 1) * query_tile)) attends to key j <= i if

    * j lies in one of the key tiles of (head, r), each `[first key, first key + key_tile)`, or
    * j is one of the head's columns and lies in none of these key tiles. So a column counts once,
      wherever it lies: before, between or behind the tiles. It is never widened to a block.

    The tiles of one (head, r) ascend, do not overlap, and begin at 0 or later and at or before the
    last row of r. They may begin anywhere, and end behind the last token. Kernels rely on this and
    the host cannot see it without waiting for the device: see `check_lists`.

    Letters: HQ query heads, R = ceil(T / query_tile) query tiles, N key tiles, C columns.
    """

    query_tile: int
    """Rows of a query tile: 64 or 128."""
    key_tile: int
    """Keys of a key tile: 64 or 128."""
    row_starts: Tensor  # [HQ, R + 1] int32
    """Where the key tiles of each (head, query tile) begin in `tiles`, and the last of them ends.
    `row_starts[h, R]` may differ from `row_starts[h + 1, 0]`: what no row claims is not read."""
    tiles: Tensor  # [N] int32
    """First key of each key tile."""
    columns: Tensor | None = None  # [C] int32
    """Single keys, ascending within a head, each once; None for none at all."""
    column_starts: Tensor | None = None  # [HQ + 1] int32
    """Where the columns of each head begin in `columns`, from 0 to C."""

    def __post_init__(self) -> None:
        """Sizes, dtypes and devices; what lies in the tensors is not read."""
        if self.query_tile not in TILE_SIZES or self.key_tile not in TILE_SIZES:
            raise UsageError(
                f"query_tile and key_tile are {self.query_tile} and {self.key_tile}: want 64 or 128"
            )
        if (self.columns is None) != (self.column_starts is None):
            raise UsageError("columns and column_starts go together: one of them is None")
        wanted = {"row_starts": 2, "tiles": 1, "columns": 1, "column_starts": 1}
        for name, num_dims in wanted.items():
            x: Tensor | None = getattr(self, name)
            if x is None:
                continue
            if x.dtype != torch.int32 or x.dim() != num_dims or x.device != self.tiles.device:
                raise UsageError(
                    f"{name} is {x.dtype} {list(x.shape)} on {x.device}: want int32 of {num_dims} "
                    f"dimensions on {self.tiles.device}"
                )
        if self.column_starts is not None and len(self.column_starts) != self.num_heads + 1:
            raise UsageError(
                f"column_starts has {len(self.column_starts)} entries: want {self.num_heads + 1}, "
                "one more than row_starts has heads"
            )

    @property
    def num_heads(self) -> int:
        """HQ."""
        return self.row_starts.shape[0]

    @property
    def num_query_tiles(self) -> int:
        """R."""
        return self.row_starts.shape[1] - 1

    def num_tiles(self) -> Tensor:
        """Key tiles of each (head, query tile): `[HQ, R]` int32."""
        return self.row_starts.diff(dim=1)


def from_mask(mask: Tensor, tile: int) -> BlockLists:
    """Lists of a mask over aligned blocks; blocks behind the diagonal are left out.

    The device is not waited for: `tiles` has room for all causal blocks, and the lists say how far
    it is filled.

    Args:
        mask: bool `[HQ, R, R]`: whether query tile r attends to key tile c.
        tile: rows and keys of a block, 64 or 128.

    Raises:
        UsageError: another mask, or of more blocks than lists can count.
    """
    square = mask.dim() == 3 and mask.shape[1] == mask.shape[2] and mask.shape[1] > 0
    if mask.dtype != torch.bool or not square:
        raise UsageError(
            f"mask is {mask.dtype} {list(mask.shape)}: want bool [HQ, R, R], one entry for each "
            "query head, query tile and key tile"
        )
    num_heads, num_blocks, _ = mask.shape
    room = num_heads * (num_blocks * (num_blocks + 1) // 2)
    check_num_tiles(room)
    mask = mask.tril()
    ends = mask.sum(-1).flatten().cumsum(0).int()
    row_starts = F.pad(ends, (1, 0)).unfold(0, num_blocks + 1, num_blocks)  # [HQ, R + 1]
    tiles = torch.empty(room + 1, dtype=torch.int32, device=mask.device)  # the last for what is off
    first_keys = torch.arange(num_blocks, dtype=torch.int32, device=mask.device) * tile
    heads_of_chunk = max(1, ENTRIES_PER_CHUNK // max(1, num_blocks**2))
    for heads in range(0, num_heads, heads_of_chunk):
        chunk = mask[heads : heads + heads_of_chunk]
        place = chunk.cumsum(2) - 1 + row_starts[heads : heads + heads_of_chunk, :-1, None]
        tiles[torch.where(chunk, place, room)] = first_keys.expand(chunk.shape)
    return BlockLists(
        query_tile=tile, key_tile=tile, row_starts=row_starts.contiguous(), tiles=tiles[:room]
    )


def check_num_tiles(num_tiles: int) -> None:
    """Refuse more key tiles than lists can count: UsageError."""
    if num_tiles > MOST_TILES:
        raise UsageError(
            f"{num_tiles} key tiles in all query heads: want {MOST_TILES} at most; take a shorter "
            "prompt, or larger blocks"
        )


def computed_pairs(lists: BlockLists, num_tokens: int) -> Tensor:
    """Causal query-key pairs of the lists, tiles and single columns: `[HQ]` int64, on their device.

    Of T (T + 1) / 2 for each head of dense attention. Pairs that an element predicate of the call
    leaves out of a tile are counted. The device is not waited for.

    Args:
        lists: of one sample.
        num_tokens: T.
    """
    pairs = _pairs_of_tiles(lists, num_tokens)
    if lists.columns is None or lists.column_starts is None:
        return pairs
    heads = _owner(lists.column_starts, len(lists.columns))
    below = (num_tokens - lists.columns).long()  # rows that see each column
    pairs = pairs.index_add(0, heads, below)
    return pairs - _pairs_of_columns_in_tiles(lists, heads, num_tokens)


def check_lists(lists: BlockLists, num_tokens: int) -> None:
    """Refuse lists that break the rules of `BlockLists`; waits for the device, so for tests.

    Args:
        lists: of one sample.
        num_tokens: T.
    """
    starts = lists.row_starts.long().cpu()
    tiles = lists.tiles.long().cpu()
    rows = -(-num_tokens // lists.query_tile)
    if lists.num_query_tiles != rows:
        raise UsageError(f"the lists have {lists.num_query_tiles} query tiles: want {rows}")
    flat = starts.flatten()
    if bool((flat.diff() < 0).any()) or not 0 <= int(flat[0]) <= int(flat[-1]) <= len(tiles):
        raise UsageError("row_starts: want starts within tiles that do not descend")
    owner, claimed = _rows_of_tiles(starts, len(tiles))
    last_row = ((owner % (rows + 1) + 1) * lists.query_tile).clamp(max=num_tokens) - 1
    if bool((claimed & ((tiles < 0) | (tiles > last_row))).any()):
        raise UsageError("tiles: want first keys from 0 to the last row of their query tile")
    same_row = claimed[1:] & claimed[:-1] & (owner.diff() == 0)
    if bool((same_row & (tiles.diff() < lists.key_tile)).any()):
        raise UsageError("tiles of a query tile: want them to ascend without overlapping")
    if lists.columns is None or lists.column_starts is None:
        return
    columns, ends = lists.columns.cpu(), lists.column_starts.cpu()
    if bool((ends.diff() < 0).any()) or (int(ends[0]), int(ends[-1])) != (0, len(columns)):
        raise UsageError(f"column_starts: want them to ascend from 0 to {len(columns)}")
    heads = _owner(ends, len(columns))
    descends = (columns.diff() <= 0) & (heads.diff() == 0)
    outside = (columns < 0) | (columns >= num_tokens)
    if bool(descends.any()) or bool(outside.any()):
        raise UsageError(f"columns: want keys below {num_tokens} that ascend within a head")


def _pairs_of_tiles(lists: BlockLists, num_tokens: int) -> Tensor:
    """Of all key tiles of a head `[HQ]`: whole ones, less what the diagonal cuts off the last."""
    first, rows = _query_rows(lists, num_tokens)
    pairs = lists.num_tiles() * (rows * lists.key_tile)
    # Tiles do not overlap, so no more than these reach behind the first row of a query tile.
    for back in range(-(-lists.query_tile // lists.key_tile) + 1):
        slot = lists.row_starts[:, 1:].long() - 1 - back
        exists = slot >= lists.row_starts[:, :-1]
        tile = lists.tiles[slot.clamp(min=0)] if len(lists.tiles) else slot
        before = first - tile  # keys of the tile that the row before the first one sees
        seen = _triangle(before + rows, lists.key_tile) - _triangle(before, lists.key_tile)
        pairs = pairs - torch.where(exists, rows * lists.key_tile - seen, 0)
    return pairs.sum(1)


def _triangle(num_rows: Tensor, num_keys: int) -> Tensor:
    """Pairs of that many rows with a tile on whose first key the first row lies: `1 + 2 + ...`."""
    rising = num_rows.clamp(0, num_keys)
    return rising * (rising + 1) // 2 + (num_rows - num_keys).clamp(min=0) * num_keys


def _pairs_of_columns_in_tiles(lists: BlockLists, heads: Tensor, num_tokens: int) -> Tensor:
    """Pairs of a head's columns that its tiles have already: `[HQ]` int64.

    Args:
        lists: with columns.
        heads: `[C]` int64, of the columns.
        num_tokens: T.
    """
    assert lists.columns is not None, "asked for columns"
    first_rows, num_rows = _query_rows(lists, num_tokens)
    keys = lists.columns + heads * num_tokens  # ascending over all heads
    sums = F.pad(lists.columns.cumsum(0), (1, 0))
    total = torch.zeros(lists.num_heads, dtype=torch.int64, device=keys.device)
    for chunk in range(0, len(lists.tiles), ENTRIES_PER_CHUNK):
        tile = lists.tiles[chunk : chunk + ENTRIES_PER_CHUNK].long()
        owner, claimed = _rows_of_tiles(lists.row_starts, len(tile), first=chunk)
        head, row = owner // (len(first_rows) + 1), owner % (len(first_rows) + 1)
        first = first_rows[row.clamp(max=len(first_rows) - 1)]
        end = first + num_rows[row.clamp(max=len(first_rows) - 1)]
        tile = torch.where(claimed, tile, 0)
        behind = torch.minimum(tile + lists.key_tile, end)
        low, middle, high = (
            torch.searchsorted(keys, key + head * num_tokens) for key in (tile, first, behind)
        )
        middle = middle.clamp(low, high)
        pairs = (middle - low) * (end - first)  # seen by all rows
        pairs += (high - middle) * end - (sums[high] - sums[middle])
        total.index_add_(0, head, pairs * claimed)
    return total


def _query_rows(lists: BlockLists, num_tokens: int) -> tuple[Tensor, Tensor]:
    """First row and number of rows of each query tile: `[R]` int64 each."""
    device = lists.row_starts.device
    first = torch.arange(lists.num_query_tiles, device=device) * lists.query_tile
    return first, (num_tokens - first).clamp(max=lists.query_tile)


def _rows_of_tiles(row_starts: Tensor, num: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """The place in the flat `row_starts` that owns each of `num` tiles, and whether one does."""
    owner = _owner(row_starts.flatten(), num, first=first)
    claimed = (owner >= 0) & (owner % row_starts.shape[1] < row_starts.shape[1] - 1)
    return owner.clamp(min=0), claimed


def _owner(starts: Tensor, num: int, *, first: int = 0) -> Tensor:
    """The last place of `starts` (ascending) at or before each of `num` entries: int64."""
    entries = torch.arange(first, first + num, dtype=starts.dtype, device=starts.device)
    return torch.searchsorted(starts, entries, right=True) - 1
