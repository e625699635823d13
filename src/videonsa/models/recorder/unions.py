"""How many blocks neighbouring vision tokens select together: what a tile of them has to read."""

from typing import NamedTuple

import torch
from torch import Tensor

from videonsa.models.methods import Attended
from videonsa.models.recorder.protocol import Recorder, check_one_sample
from videonsa.models.step import StepTokens

TILE_ROWS = 16
"""Neighbouring tokens whose selections are united."""
ENTRIES_PER_CHUNK = 2**24
"""Block indices that `mean_union` sorts at a time."""


def mean_union(selected_blocks: Tensor, *, rows: int = TILE_ROWS) -> float:
    """Mean number of distinct blocks that `rows` neighbouring tokens select in a KV head.

    Args:
        selected_blocks: `[B, T, H, n]` int, negative for none.
        rows: tokens of a tile; T // rows whole tiles are counted, tokens left over are not.

    Raises:
        ValueError: not even one whole tile.
    """
    sizes = union_sizes(selected_blocks, rows=rows)
    return float(sizes.double().mean())


def union_sizes(selected_blocks: Tensor, *, rows: int = TILE_ROWS) -> Tensor:
    """The number of distinct blocks of each tile and KV head, int64 `[B, tiles, H]`.

    Arguments and errors are those of `mean_union`.
    """
    num_samples, num_rows, num_kv_heads, num_selected = selected_blocks.shape
    num_tiles = num_rows // rows
    if num_tiles == 0 or num_samples == 0:
        raise ValueError(f"selected_blocks has {num_rows} rows: want at least {rows}, one tile")
    chunk = max(1, ENTRIES_PER_CHUNK // (num_samples * num_kv_heads * num_selected * rows))
    sizes = []
    for first in range(0, num_tiles, chunk):
        last = min(first + chunk, num_tiles)
        tiles = selected_blocks[:, first * rows : last * rows].unflatten(1, (last - first, rows))
        blocks = tiles.transpose(2, 3).flatten(3).sort(dim=-1).values  # [B, tiles, H, rows * n]
        new = (blocks[..., 1:] != blocks[..., :-1]) & (blocks[..., 1:] >= 0)
        sizes.append(new.sum(-1) + (blocks[..., 0] >= 0))
    return torch.cat(sizes, dim=1)


class Bounds(NamedTuple):
    """What unions can be, by the places of the rows: means over tiles."""

    least: float
    """All rows of a tile select the same blocks beside their own."""
    chance: float
    """Each row draws its free blocks at random among those before its own."""

    def disorder(self, union: float) -> float:
        """Where a mean union lies between these: 0 is `least`, 1 is `chance`."""
        return (union - self.least) / (self.chance - self.least)

    def union(self, disorder: float) -> float:
        """The mean union of a disorder."""
        return self.least + disorder * (self.chance - self.least)


def union_bounds(current: Tensor, *, num_selected: int, rows: int = TILE_ROWS) -> Bounds:
    """For rows whose own block alone is forced.

    Args:
        current: int64 `[T]`, the block of each row, ascending; whole tiles are counted.
        num_selected: n.
        rows: of a tile.
    """
    tiles = current[: len(current) // rows * rows].view(-1, rows).double()
    first, last = tiles[:, 0], tiles[:, -1]
    free = tiles.clamp(max=num_selected - 1)
    missed = (1 - free / tiles.clamp(min=1)).prod(1)
    # Blocks from the first row's own to the last row's own are each forced in some row.
    forced = last - first + 1
    least = forced + free[:, 0]
    return Bounds(float(least.mean()), float((forced + first * (1 - missed)).mean()))


class SelectionUnions(Recorder):
    """Unions of each layer, over all whole tiles of the steps seen; for a batch of one."""

    wants_branches = True

    def __init__(self) -> None:
        self._sizes: dict[int, Tensor] = {}
        self._overlaps: dict[int, tuple[int, int]] = {}
        self._bounds: dict[int, tuple[float, float, int]] = {}
        self._vision_rows = torch.empty(0, dtype=torch.bool)

    @property
    def unions(self) -> list[float]:
        """The mean, layer by layer."""
        sizes = (self._sizes[layer].double() for layer in sorted(self._sizes))
        return [float(x @ torch.arange(len(x)).double() / x.sum()) for x in sizes]

    @property
    def sizes(self) -> list[Tensor]:
        """How many tiles (of a KV head each) have a union of u blocks, layer by layer.

        int64 `[rows * n + 1]`, u from 0.
        """
        return [self._sizes[layer] for layer in sorted(self._sizes)]

    @property
    def overlaps(self) -> list[float]:
        """The share of its blocks that a token selects with the one before it, layer by layer."""
        return [both / all_ for _, (both, all_) in sorted(self._overlaps.items())]

    @property
    def bounds(self) -> Bounds | None:
        """Between which unions lie; None without a tile, or where a row's own block is not forced.

        As if it alone were forced: with more forced blocks, unions may be below chance by that.
        """
        if not self._bounds:
            return None
        least, chance, tiles = self._bounds[min(self._bounds)]
        return Bounds(least / tiles, chance / tiles)

    def begin_step(self, tokens: StepTokens) -> None:
        """Remember the new vision tokens.

        Raises:
            UsageError: more than one sample.
        """
        check_one_sample(tokens)
        self._vision_rows = tokens.vision_mask[0, -tokens.num_tokens :]

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """One more layer; a step of less than one tile counts nothing."""
        if attended.result is None or attended.spec is None:
            return
        selected = attended.result.selected_blocks
        selected = selected[:, self._vision_rows.to(selected.device)]
        tiles = selected.shape[1] // TILE_ROWS
        if not tiles:
            return
        most = TILE_ROWS * selected.shape[3]
        sizes = union_sizes(selected, rows=TILE_ROWS).flatten().bincount(minlength=most + 1).cpu()
        self._sizes[layer] = self._sizes.get(layer, 0) + sizes
        both, all_ = self._overlaps.get(layer, (0, 0))
        shared, later = _shared(selected)
        self._overlaps[layer] = both + shared, all_ + later
        if attended.spec.force_current_block and layer == min(self._sizes):
            current = selected[0].amax((1, 2)).long().cpu()
            bounds = union_bounds(current, num_selected=selected.shape[3])
            least, chance, before = self._bounds.get(layer, (0.0, 0.0, 0))
            self._bounds[layer] = (
                least + tiles * bounds.least,
                chance + tiles * bounds.chance,
                before + tiles,
            )


def _shared(selected: Tensor) -> tuple[int, int]:
    """Blocks that tokens share with the one before them, and all of theirs: `[1, T, H, n]`."""
    num_rows, num_heads, num_selected = selected.shape[1:]
    chunk = max(1, ENTRIES_PER_CHUNK // (num_heads * num_selected**2))
    shared = 0
    for first in range(1, num_rows, chunk):
        mine = selected[0, first : first + chunk]
        before = selected[0, first - 1 : first - 1 + len(mine)]
        same = mine[..., :, None] == before[..., None, :]
        shared += int((same & (mine >= 0)[..., None]).sum())
    return shared, int((selected[0, 1:] >= 0).sum())
