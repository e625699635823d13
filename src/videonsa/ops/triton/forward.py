"""The forward pass of NSA: pool, compressed, importance and top-n, selected, window, gated sum."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from videonsa.ops.triton.common import Keys
from videonsa.ops.triton.compressed import compressed
from videonsa.ops.triton.importance import importance, score_buffers, top_blocks
from videonsa.ops.triton.index import StreamIndex, Tiles, row_tiles
from videonsa.ops.triton.pool import pool
from videonsa.ops.triton.scattered import add_scattered
from videonsa.ops.triton.selected import plan_tiles, selected_shared
from videonsa.ops.triton.tuning import Tuning, rows_of_tile
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
    """The gated sum, and where asked for all that it was made of; R rows flat over samples."""

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
    return_branches: bool,
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
        return_branches: compute and keep every branch, listed or not.
    """
    wants = {
        name: return_branches or name in options.branches
        for name in ("compressed", "selected", "window")
    }
    group = q.shape[1] // k.shape[1]
    o_cmp = lse_cmp = o_slc = lse_slc = None
    keys, means = pool(k, v, index)
    if wants["compressed"] or (wants["selected"] and selected is None):
        o_cmp, lse_cmp = compressed(
            q,
            means.k,
            means.v,
            means.poison,
            means.poisoned,
            index.row_begin,
            index.row_end,
            row_tiles(index, tuning.compressed.block_m),
            config=tuning.compressed,
        )
        if wants["selected"] and selected is None:
            select = _select_per_block if options.per_block else _select_per_row
            selected = select(q, means.k, lse_cmp, index, options=options, tuning=tuning)
    if wants["selected"]:
        assert selected is not None, "chosen above"
        o_slc, lse_slc = _selected(q, keys, selected, index, tuning=tuning)
    output, o_win, lse_win = window_and_sum(
        q,
        keys,
        gates,
        o_cmp if "compressed" in options.branches else None,
        o_slc if "selected" in options.branches else None,
        row_tiles(index, tuning.window.block_m // group),
        index,
        window_size=options.window_size,
        use_window="window" in options.branches,
        return_branch=return_branches,
        config=tuning.window,
    )
    return Branches(output, o_cmp, o_slc, o_win, lse_cmp, lse_slc, lse_win, selected)


def _select_per_row(
    q: Tensor,
    k_cmp: Tensor,
    lse_cmp: Tensor,
    index: StreamIndex,
    *,
    options: Options,
    tuning: Tuning,
) -> Tensor:
    """Every row its own selection: `[R, H, n]` flat blocks."""
    num_kv_heads = k_cmp.shape[1]
    selected = _no_selection(len(q), num_kv_heads, options.num_selected, q.device)
    config = tuning.importance
    tiles = row_tiles(index, config.block_m)
    tile_bytes = config.block_m * num_kv_heads * index.max_blocks * 4
    chunk = max(1, min(tiles.num, MAX_GRID, tuning.score_bytes // tile_bytes))
    scores = score_buffers(
        chunk * config.block_m,
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
            index.row_begin,
            index.row_end,
            tiles,
            part,
            scores,
            sum_rows=False,
            config=config,
        )
        top_blocks(
            scores,
            selected,
            tiles,
            part,
            index.row_begin,
            index.row_end,
            index.row_block,
            num_init=options.num_init,
            num_local=options.num_local,
        )
    return selected


def _select_per_block(
    q: Tensor,
    k_cmp: Tensor,
    lse_cmp: Tensor,
    index: StreamIndex,
    *,
    options: Options,
    tuning: Tuning,
) -> Tensor:
    """All rows of a block share a selection among the blocks before it: `[R, H, n]` flat blocks."""
    num_blocks, num_kv_heads, _ = k_cmp.shape
    selected = _no_selection(num_blocks, num_kv_heads, options.num_selected, q.device)
    blocks = torch.arange(num_blocks, dtype=torch.int32, device=q.device)
    first_row = torch.searchsorted(index.row_block, blocks, out_int32=True)
    num_rows = torch.searchsorted(index.row_block, blocks, right=True, out_int32=True) - first_row
    row_tile = Tiles(torch.stack([first_row, num_rows], dim=1), num_blocks, index.max_size, 0)
    exists = (num_rows > 0).int()
    block_tile = Tiles(torch.stack([blocks, exists], dim=1), num_blocks, 1, 0)
    begin = index.row_begin[first_row.clamp(max=len(q) - 1)]
    rows = max(16, triton.next_power_of_2(index.max_size))
    config = tuning.importance._replace(block_m=rows, num_warps=8 if rows > 64 else 4)
    chunk = max(
        1, min(num_blocks, MAX_GRID, tuning.score_bytes // (num_kv_heads * index.max_blocks * 4))
    )
    scores = score_buffers(
        chunk,
        num_kv_heads,
        max_blocks=index.max_blocks,
        num_selected=options.num_selected,
        device=q.device,
    )
    for first in range(0, num_blocks, chunk):
        part = range(first, min(first + chunk, num_blocks))
        importance(
            q,
            k_cmp,
            lse_cmp,
            index.row_begin,
            index.row_block,
            row_tile,
            part,
            scores,
            sum_rows=True,
            config=config,
        )
        top_blocks(
            scores,
            selected,
            block_tile,
            part,
            begin,
            blocks,
            blocks,
            num_init=options.num_init,
            num_local=options.num_local,
        )
    return selected[index.row_block]


def _selected(
    q: Tensor, keys: Keys, selected: Tensor, index: StreamIndex, *, tuning: Tuning
) -> tuple[Tensor, Tensor]:
    """o_slc `[R, HQ, D]` and its LSE: each tile by the plan that its union asks for."""
    tile = rows_of_tile(q.shape[1] // keys.k.shape[1], tuning.selected.block_m)
    tiles = row_tiles(index, tile, aligned=True)
    config = tuning.selected
    plan = plan_tiles(selected, tiles, index, min_shared=tuning.min_shared, block_n=config.block_n)
    o_slc, lse_slc = selected_shared(
        q,
        keys,
        tiles,
        plan,
        index,
        full_blocks=index.uniform and index.max_size == config.block_n,
        config=config,
    )
    add_scattered(
        q,
        keys.k,
        keys.v,
        o_slc,
        lse_slc,
        tiles,
        plan,
        index,
        full_blocks=index.uniform and index.max_size == tuning.partial.block_n,
        partial_bytes=tuning.partial_bytes,
        num_multiprocessors=num_multiprocessors(q.device),
        config=tuning.partial,
    )
    return o_slc, lse_slc


def _no_selection(
    num_rows: int, num_kv_heads: int, num_selected: int, device: torch.device
) -> Tensor:
    shape = (num_rows, num_kv_heads, num_selected)
    return torch.empty(shape, dtype=torch.int32, device=device)


def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU, for kernels that loop over their work."""
    if device.type != "cuda":
        return 2  # the interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
