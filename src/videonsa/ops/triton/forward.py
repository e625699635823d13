"""The forward pass of NSA: pool, compressed, importance and top-n, selected, window, gated sum."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from videonsa.ops.spec import BRANCHES
from videonsa.ops.triton.common import Keys
from videonsa.ops.triton.compressed import compressed
from videonsa.ops.triton.importance import importance, score_buffers, top_blocks
from videonsa.ops.triton.index import StreamIndex, Tiles, row_tiles
from videonsa.ops.triton.pool import pool
from videonsa.ops.triton.scattered import add_scattered
from videonsa.ops.triton.selected import plan_tiles, selected_shared
from videonsa.ops.triton.support import compute_device
from videonsa.ops.triton.tuning import Config, Tuning, rows_of_tile
from videonsa.ops.triton.window import window_and_sum

MAX_GRID = 65535
"""Programs along the second axis of a grid."""


class Options(NamedTuple):
    """What of an `NSASpec` the kernels need to know."""

    num_selected: int
    window_size: int
    num_init: int
    num_local: int
    per_block: bool
    """All rows of a block share one selection."""
    branches: tuple[str, ...]


class Branches(NamedTuple):
    """The gated sum, and what of it is to be kept; R rows flat over samples."""

    output: Tensor  # [R, HQ, D]
    o_cmp: Tensor | None
    o_slc: Tensor | None
    o_win: Tensor | None
    lse_cmp: Tensor | None  # [R, HQ] float32
    lse_slc: Tensor | None
    lse_win: Tensor | None
    selected: Tensor | None  # [R, H, n] int32, flat blocks, ascending, then -1


def nsa_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    index: StreamIndex,
    selected: Tensor | None,
    *,
    options: Options,
    tuning: Tuning,
    keep: tuple[str, ...],
) -> Branches:
    """NSA of all rows of all samples.

    Args:
        q: `[R, HQ, D]`, last dimension contiguous.
        k: `[S, H, D]`, likewise.
        v: `[S, H, D]`, likewise.
        gates: `[R, HQ, 3]`.
        index: of these rows and keys.
        selected: `[R, H, n]` int32 flat blocks, ascending and then -1: overrides the selection.
        options: what to compute.
        tuning: how.
        keep: branches whose results are given beside the sum; they are computed, listed or not.
    """
    wants = {name: name in keep or name in options.branches for name in BRANCHES}
    o_cmp = lse_cmp = o_slc = lse_slc = None
    keys, means = pool(k, v, index)
    if wants["compressed"] or (wants["selected"] and selected is None):
        tiles = row_tiles(index, tuning.compressed.block_m)
        seen = (index.row_begin, index.row_end)
        o_cmp, lse_cmp = compressed(q, means, seen, tiles, config=tuning.compressed)
        if wants["selected"] and selected is None:
            selected = _select(q, means.k, lse_cmp, index, options=options, tuning=tuning)
    if wants["selected"]:
        assert selected is not None, "chosen above"
        o_slc, lse_slc = _selected(q, keys, selected, index, tuning=tuning)
    output, o_win, lse_win = window_and_sum(
        q,
        keys,
        gates,
        o_cmp if "compressed" in options.branches else None,
        o_slc if "selected" in options.branches else None,
        row_tiles(index, tuning.window.block_m // (q.shape[1] // k.shape[1])),
        index,
        window_size=options.window_size,
        use_window="window" in options.branches,
        return_branch="window" in keep,
        config=tuning.window,
    )
    if "compressed" not in keep:
        o_cmp = lse_cmp = None
    if "selected" not in keep:
        o_slc = lse_slc = selected = None
    return Branches(output, o_cmp, o_slc, o_win, lse_cmp, lse_slc, lse_win, selected)


class _Ranking(NamedTuple):
    """What has a selection of its own: every row, or all rows of a block together."""

    rows: Tiles
    """Of rows whose scores are computed side by side."""
    seen: tuple[Tensor, Tensor]
    """The blocks that a row scores, as `importance` takes them."""
    selections: Tiles
    """As many tiles, of selections."""
    candidates: tuple[Tensor, Tensor, Tensor]
    """Of each selection, as `top_blocks` takes them."""
    config: Config
    """Of `importance`."""


def _ranking_of_rows(index: StreamIndex, config: Config) -> _Ranking:
    tiles, seen = row_tiles(index, config.block_m), (index.row_begin, index.row_end)
    return _Ranking(tiles, seen, tiles, (*seen, index.row_block), config)


def _ranking_of_blocks(index: StreamIndex, config: Config) -> _Ranking:
    """All rows of a block share a selection among the blocks before it."""
    num_blocks, num_rows = len(index.block_start), len(index.row_block)
    blocks = torch.arange(num_blocks, dtype=torch.int32, device=index.row_block.device)
    first = torch.searchsorted(index.row_block, blocks, out_int32=True)
    count = torch.searchsorted(index.row_block, blocks, right=True, out_int32=True) - first
    begin = index.row_begin[first.clamp(max=num_rows - 1)]
    block_m = max(16, triton.next_power_of_2(index.max_size))
    return _Ranking(
        Tiles(torch.stack([first, count], dim=1), num_blocks, index.max_size, 0),
        (index.row_begin, index.row_block),
        Tiles(torch.stack([blocks, (count > 0).int()], dim=1), num_blocks, 1, 0),
        (begin, blocks, blocks),
        config._replace(block_m=block_m, num_warps=8 if block_m > 64 else 4),
    )


def _select(
    q: Tensor,
    k_cmp: Tensor,
    lse_cmp: Tensor,
    index: StreamIndex,
    *,
    options: Options,
    tuning: Tuning,
) -> Tensor:
    """The selection of every row, `[R, H, n]` flat blocks: scored and ranked chunk by chunk."""
    rank = _ranking_of_blocks if options.per_block else _ranking_of_rows
    ranking = rank(index, tuning.importance)
    num_kv_heads, tiles = k_cmp.shape[1], ranking.selections
    shape = (len(ranking.candidates[0]), num_kv_heads, options.num_selected)
    selected = torch.empty(shape, dtype=torch.int32, device=q.device)
    tile_bytes = tiles.size * num_kv_heads * index.max_blocks * 4
    chunk = max(1, min(tiles.num, MAX_GRID, tuning.score_bytes // tile_bytes))
    scores = score_buffers(
        chunk * tiles.size,
        num_kv_heads,
        max_blocks=index.max_blocks,
        num_selected=options.num_selected,
        device=q.device,
    )
    for first in range(0, tiles.num, chunk):
        part = range(first, min(first + chunk, tiles.num))
        importance(
            q,
            k_cmp,
            lse_cmp,
            ranking.seen,
            ranking.rows,
            part,
            scores,
            sum_rows=options.per_block,
            config=ranking.config,
        )
        top_blocks(
            scores,
            selected,
            tiles,
            part,
            ranking.candidates,
            num_init=options.num_init,
            num_local=options.num_local,
        )
    return selected[index.row_block] if options.per_block else selected


def _selected(
    q: Tensor, keys: Keys, selected: Tensor, index: StreamIndex, *, tuning: Tuning
) -> tuple[Tensor, Tensor]:
    """o_slc `[R, HQ, D]` and its LSE: each tile by the plan that its union asks for."""
    tile = rows_of_tile(q.shape[1] // keys.k.shape[1], tuning.selected.block_m)
    tiles = row_tiles(index, tile, aligned=True)
    config = tuning.selected
    plan = plan_tiles(selected, tiles, index, min_shared=tuning.min_shared, block_n=config.block_n)
    o_slc, lse_slc = selected_shared(q, keys, tiles, plan, index, config=config)
    add_scattered(
        q,
        keys,
        o_slc,
        lse_slc,
        tiles,
        plan,
        index,
        partial_bytes=tuning.partial_bytes,
        num_multiprocessors=num_multiprocessors(q.device),
        config=tuning.partial,
    )
    return o_slc, lse_slc


def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU, for kernels that loop over their work."""
    device = compute_device(device)
    if device.type != "cuda":
        return 2  # the interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
