"""How many blocks neighbouring vision tokens select together: what a tile of them has to read."""

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
    num_samples, num_rows, num_kv_heads, num_selected = selected_blocks.shape
    num_tiles = num_rows // rows
    if num_tiles == 0 or num_samples == 0:
        raise ValueError(f"selected_blocks has {num_rows} rows: want at least {rows}, one tile")
    chunk = max(1, ENTRIES_PER_CHUNK // (num_samples * num_kv_heads * num_selected * rows))
    total = 0
    for first in range(0, num_tiles, chunk):
        last = min(first + chunk, num_tiles)
        tiles = selected_blocks[:, first * rows : last * rows].unflatten(1, (last - first, rows))
        blocks = tiles.transpose(2, 3).flatten(3).sort(dim=-1).values  # [B, tiles, H, rows * n]
        new = blocks[..., 1:] != blocks[..., :-1]
        total += int((new & (blocks[..., 1:] >= 0)).sum() + (blocks[..., 0] >= 0).sum())
    return total / (num_samples * num_tiles * num_kv_heads)


class SelectionUnions(Recorder):
    """The mean union of each layer, over all whole tiles of the steps seen; for a batch of one."""

    wants_branches = True

    def __init__(self) -> None:
        self._totals: dict[int, float] = {}
        self._tiles: dict[int, int] = {}
        self._vision_rows = torch.empty(0, dtype=torch.bool)

    @property
    def unions(self) -> list[float]:
        """Layer by layer."""
        return [self._totals[layer] / self._tiles[layer] for layer in sorted(self._totals)]

    def begin_step(self, tokens: StepTokens) -> None:
        """Remember the new vision tokens.

        Raises:
            UsageError: more than one sample.
        """
        check_one_sample(tokens)
        self._vision_rows = tokens.vision_mask[0, -tokens.num_tokens :]

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """One more layer; a step of less than one tile counts nothing."""
        if attended.result is None:
            return
        selected = attended.result.selected_blocks
        selected = selected[:, self._vision_rows.to(selected.device)]
        tiles = selected.shape[1] // TILE_ROWS
        if tiles:
            self._totals[layer] = self._totals.get(layer, 0.0) + tiles * mean_union(selected)
            self._tiles[layer] = self._tiles.get(layer, 0) + tiles
