"""Which keys the tokens of a prompt attend to in one layer, summed up in the cells of a picture."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from videonsa.models.methods import Attended
from videonsa.models.recorder.protocol import Recorder, check_one_sample
from videonsa.models.step import StepTokens
from videonsa.ops.block_lists import BlockLists, Trim
from videonsa.ops.masks import causal, membership, windowed
from videonsa.ops.varlen import block_borders

ROWS_A_CELL = 8
"""Query rows of a cell that are looked at where it has more: evenly spread."""


class Keys(NamedTuple):
    """The S keys of a step, of one sample."""

    vision_mask: Tensor
    """bool `[S]`."""
    frame_sizes: list[int]
    """Vision tokens of each frame."""


class AttentionPattern(Recorder):
    """Shares of the causal (query, key) pairs that one layer attends to, cell by cell.

    Both axes are the tokens of the whole prompt, those that left it included: nothing attends to
    them. NSA's compressed keys stand for many tokens each and are not counted.
    """

    wants_branches = True

    def __init__(
        self,
        layer: int,
        *,
        num_tokens: int,
        cells: int,
        places: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        """Look at nothing yet.

        Args:
            layer: its number; others cost nothing here.
            num_tokens: N, of the prompt before any token left it.
            cells: C of each axis, at most N.
            places: gives, while the layer is recorded, the places of its keys among the N tokens,
                int64, those to come too where a prompt goes in chunks; None: they are the first.
        """
        self._layer, self._places = layer, places
        self.borders = torch.linspace(0, num_tokens, min(cells, num_tokens) + 1).round().long()
        """int64 `[C + 1]`: cell c has the tokens [borders[c], borders[c + 1])."""
        self._keys: Keys | None = None
        self._rows = _spread(self.borders)
        size = len(self.borders) - 1
        self._attended = torch.zeros(size, size, dtype=torch.float64)
        self._kept = torch.zeros(size, dtype=torch.int64)

    def begin_step(self, tokens: StepTokens) -> None:
        """Take note of the keys of a step.

        Raises:
            UsageError: more than one sample.
        """
        check_one_sample(tokens)
        self._keys = Keys(tokens.vision_mask[0], list(tokens.frame_sizes()))

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add the pairs of the rows that are looked at, in the one layer."""
        if layer != self._layer or self._keys is None:
            return
        num_rows, num_keys, device = q.shape[1], k.shape[1], q.device
        found = self._places()
        places = torch.arange(num_keys) if found is None else found[:num_keys].cpu()
        chosen = torch.isin(places[num_keys - num_rows :], self._rows)
        rows = chosen.nonzero()[:, 0]
        cells = self._cell_of(places)
        cells_of_rows = cells[num_keys - num_rows + rows].to(device)
        self._kept = cells.bincount(minlength=len(self._kept))
        cells = cells.to(device)
        keys = self._keys._replace(vision_mask=self._keys.vision_mask.to(device))
        sums = torch.zeros(self._attended.shape, device=device)
        heads = 0
        for mask in attended_keys(attended, rows.to(device), num_rows=num_rows, keys=keys):
            per_row = sums.new_zeros(len(rows), len(sums)).index_add_(1, cells, mask.to(sums.dtype))
            sums.index_add_(0, cells_of_rows, per_row)
            heads += 1
        self._attended += sums.double().cpu() / heads

    def shares(self) -> Tensor:
        """Float64 `[C, C]`, queries by keys; NaN where no key is before a query."""
        size = len(self.borders) - 1
        seen = (self._rows[:, None] + 1 - self.borders[:-1]).clamp(min=0)
        seen = seen.minimum(self.borders.diff()).double()  # [rows, C]
        causal_pairs = torch.zeros(size, size, dtype=torch.float64)
        causal_pairs.index_add_(0, self._cell_of(self._rows), seen)
        return self._attended / causal_pairs.where(causal_pairs > 0, torch.nan)

    def kept(self) -> Tensor:
        """Float64 `[C]`: the share of each cell's tokens that the layer still has."""
        return self._kept / self.borders.diff().double()

    def _cell_of(self, places: Tensor) -> Tensor:
        return torch.searchsorted(self.borders, places, right=True) - 1


def attended_keys(
    attended: Attended, rows: Tensor, *, num_rows: int, keys: Keys
) -> Iterator[Tensor]:
    """Which keys some rows of a layer attend to.

    Args:
        attended: what the layer gave, with its branches or lists; what has neither is dense.
        rows: int64 `[R]`, ascending, among the T tokens.
        num_rows: T, the last of the S keys.
        keys: of the step.

    Yields:
        Bool `[R, S]`, one for each group of heads that attend alike, all groups equally large.
    """
    places = rows + len(keys.vision_mask) - num_rows
    before = causal(places, torch.arange(len(keys.vision_mask), device=rows.device))
    if attended.result is not None and attended.spec is not None:
        yield from _nsa_keys(attended, rows, places, before, keys)
    elif attended.lists is not None:
        for head in range(attended.lists.num_heads):
            yield before & _listed_keys(attended.lists, head, rows, num_rows, trim=attended.trim)
    else:
        yield before


def _nsa_keys(
    attended: Attended, rows: Tensor, places: Tensor, before: Tensor, keys: Keys
) -> Iterator[Tensor]:
    """Selected blocks and window of vision rows, one for each KV head; text attends to all."""
    spec, result = attended.spec, attended.result
    assert spec is not None and result is not None
    in_stream = keys.vision_mask
    if spec.stream == "sequence":
        in_stream = torch.ones_like(in_stream)
    number = in_stream.cumsum(0) - 1
    sizes = torch.tensor([size for size in keys.frame_sizes if size])
    by_frames = spec.block_size == "frame"
    borders = block_borders(spec.block_size, sizes if by_frames else None, [int(in_stream.sum())])[
        0
    ]
    ends = torch.tensor(borders[1:], device=rows.device)
    block = torch.searchsorted(ends, number, right=True).clamp(min=0, max=len(ends) - 1)
    window = windowed(number[places], number, spec.window_size)
    is_vision = keys.vision_mask[places][:, None]
    for head in range(result.selected_blocks.shape[2]):
        seen = torch.zeros_like(before)
        if "selected" in spec.branches:
            seen |= membership(result.selected_blocks[0, rows, head], len(ends))[:, block]
        if "window" in spec.branches:
            seen |= window
        yield before & torch.where(is_vision, seen & in_stream, True)


def _listed_keys(
    lists: BlockLists, head: int, rows: Tensor, num_tokens: int, *, trim: Trim | None
) -> Tensor:
    """Key tiles and single columns of the rows of a prompt: bool `[R, T]`, later keys too."""
    tile = rows // lists.query_tile
    starts, ends = (lists.row_starts[head, tile + end].long() for end in (0, 1))
    owner = torch.arange(len(rows), device=rows.device).repeat_interleave(ends - starts)
    within = torch.arange(len(owner), device=rows.device)
    within = within - ((ends - starts).cumsum(0) - (ends - starts))[owner]
    first = lists.tiles[starts[owner] + within].long()
    changes = torch.zeros(len(rows), num_tokens + 1, dtype=torch.int32, device=rows.device)
    one = changes.new_ones(())
    changes.index_put_((owner, first), one, accumulate=True)
    behind = (first + lists.key_tile).clamp(max=num_tokens)
    changes.index_put_((owner, behind), -one, accumulate=True)
    seen = changes.cumsum(1)[:, :-1] > 0
    if lists.columns is not None and lists.column_starts is not None:
        begin, end = lists.column_starts[head : head + 2].tolist()
        seen[:, lists.columns[begin:end].long()] = True
    if trim is None:
        return seen
    keys = torch.arange(num_tokens, device=rows.device)
    near = windowed(rows, keys, trim.window) | (keys < trim.num_init)
    return seen & (near | (rows[:, None] >= num_tokens - trim.num_last))


def _spread(borders: Tensor) -> Tensor:
    """Places of the rows that are looked at, int64, ascending."""
    rows = [
        torch.linspace(first, last - 1, min(ROWS_A_CELL, last - first)).round().long()
        for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
    ]
    return torch.cat(rows)
