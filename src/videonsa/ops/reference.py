"""NSA as the paper writes it (section 2.2), with explicit masks, in float32 or float64.

Slow, obvious and independent of every kernel. It walks query chunks, so that memory grows with the
keys and not with rows times keys; with gradients, each of several chunks is computed again in the
backward pass. Letters: B batch, T query rows, S keys, HQ query heads, H KV heads, G = HQ / H, D
head dim, C blocks, N = B, or 1 where all share the same blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from videonsa.ops import masks
from videonsa.ops.products import masked_scores, masked_sum
from videonsa.ops.random_blocks import random_blocks
from videonsa.ops.spec import BRANCHES, NSAResult, NSASpec
from videonsa.ops.varlen import BlockTable

SCORES_PER_CHUNK = 2**26
"""Scores of one branch held at a time: 256 MiB in float32; a chunk holds about five times that."""


class _Stream(NamedTuple):
    """What all query chunks share, KV heads first, in the compute dtype."""

    k: Tensor  # [B, H, S, D]
    v: Tensor  # [B, H, S, D]
    k_cmp: Tensor  # [B, H, C', D], C' complete blocks
    v_cmp: Tensor  # [B, H, C', D]
    block_of_key: Tensor  # [N, S]


class _Attended(NamedTuple):
    output: Tensor  # [B, H, G, T, D]
    probability: Tensor  # [B, H, G, T, S]; of a row without keys undefined
    lse: Tensor | None  # [B, H, G, T]


def nsa_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    *,
    spec: NSASpec,
    blocks: BlockTable,
    first_row: int = 0,
    selected_blocks: Tensor | None = None,
    return_branches: bool = False,
    chunk_size: int | None = None,
    layer: int = 0,
) -> Tensor | NSAResult:
    """The gated sum of the three branches for a batch of vision streams of equal length.

    Computed in float64 for float64 inputs and in float32 for all others, rounded once at the end.
    No gradient flows through the selection, and none to rows or gates of a branch without keys.

    Args:
        q: `[B, T, HQ, D]`: the rows `first_row` to `first_row + T` of the stream.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        gates: `[B, T, HQ, 3]` after the sigmoid, branches (compressed, selected, window).
        spec: a spec of the `paper` preset.
        blocks: block offsets of the streams.
        first_row: position of the first query row.
        selected_blocks: `[B, T, H, n]` int, overrides the selection.
        return_branches: give an `NSAResult`, with every branch computed, listed or not.
        chunk_size: query rows computed at a time. Default: as `SCORES_PER_CHUNK` allows.
        layer: its number, read where the selection is random.

    Returns:
        `[B, T, HQ, D]` in the dtype of `q`, or an `NSAResult`.
    """
    with torch.autocast(q.device.type, enabled=False):
        stream = _stream(k, v, blocks)
        if chunk_size is None:
            chunk_size = rows_per_chunk(q, k)
        if selected_blocks is None and spec.selection == "random":
            rows = torch.arange(first_row, first_row + q.shape[1], device=q.device)
            current = masks.block_of(blocks.offsets, rows).expand(len(q), -1)
            selected_blocks = random_blocks(
                current, rows, num_kv_heads=k.shape[2], spec=spec, layer=layer
            )
        elif selected_blocks is None and spec.selection_scope == "block":
            selected_blocks = _select_per_block(
                q, stream, spec=spec, blocks=blocks, first_row=first_row, chunk_size=chunk_size
            )

        def attend(start: int, stop: int) -> tuple[Tensor, ...]:
            return _nsa_rows(
                q[:, start:stop],
                gates[:, start:stop],
                stream,
                spec=spec,
                blocks=blocks,
                first_row=first_row + start,
                selected=None if selected_blocks is None else selected_blocks[:, start:stop],
                return_branches=return_branches,
            )

        parts = in_chunks(attend, q.shape[1], chunk_size)
    return NSAResult(*parts) if return_branches else parts[0]


def dense_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    positions: Tensor,
    key_mask: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Causal grouped-query attention of single rows over all keys.

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        positions: `[B, T]` int: the key position of each row; it sees the keys up to itself. A row
            at -1 sees none and gives 0.
        key_mask: `[B, S]` bool: keys that exist. Default: all.
        chunk_size: query rows computed at a time. Default: as `SCORES_PER_CHUNK` allows.

    Returns:
        `[B, T, HQ, D]` in the dtype of `q`.
    """
    with torch.autocast(q.device.type, enabled=False):
        k_heads, v_heads = _heads_first(k), _heads_first(v)
        keys = torch.arange(k.shape[1], device=k.device)

        def attend(start: int, stop: int) -> tuple[Tensor, ...]:
            mask = masks.causal(positions[:, start:stop], keys)  # [B, T, S]
            if key_mask is not None:
                mask = mask & key_mask[:, None]
            rows = _grouped(q[:, start:stop], num_kv_heads=k.shape[2])
            output = _attend(rows, k_heads, v_heads, mask[:, None, None]).output
            return (_ungrouped(output).to(q.dtype),)

        return in_chunks(attend, q.shape[1], chunk_size or rows_per_chunk(q, k))[0]


def pool_blocks(x: Tensor, blocks: BlockTable) -> Tensor:
    """The mean of every complete block: `[B, S, H, D]` -> `[B, C', H, D]` in the dtype of `x`.

    Float32 (float64 for float64), rounded once. The sum is a tree over the positions of a block, so
    it depends on the block's own tokens alone: pooling by chunks gives the same bits.
    """
    offsets = blocks.offsets
    positions = torch.arange(x.shape[1], device=x.device)
    block = masks.block_of(offsets, positions)  # [N, S]
    end = offsets.gather(1, block + 1)
    total = x.to(compute_dtype(x))
    step = 1 << (blocks.max_size - 1).bit_length()
    while step > 1:
        step //= 2
        partner = F.pad(total[:, step:], (0, 0, 0, 0, 0, min(step, x.shape[1])))
        inside = positions + step < end  # [N, S]
        total = total + torch.where(inside[..., None, None], partner, 0)
    first, last = offsets[:, : blocks.num_complete], offsets[:, 1 : blocks.num_complete + 1]
    index = first.clamp(max=max(x.shape[1] - 1, 0))[..., None, None]  # [N, C', 1, 1]
    mean = total.take_along_dim(index, dim=1) / (last - first).clamp(min=1)[..., None, None]
    complete = (last <= x.shape[1])[..., None, None]
    return torch.where(complete, mean, 0).to(x.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Float64 for float64 inputs, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_per_chunk(q: Tensor, k: Tensor) -> int:
    """Query rows whose scores over all keys stay within `SCORES_PER_CHUNK`, at least one."""
    scores_per_row = q.shape[0] * q.shape[2] * max(k.shape[1], 1)
    return max(1, SCORES_PER_CHUNK // scores_per_row)


def _stream(k: Tensor, v: Tensor, blocks: BlockTable) -> _Stream:
    keys = torch.arange(k.shape[1], device=k.device)
    return _Stream(
        k=_heads_first(k),
        v=_heads_first(v),
        k_cmp=_heads_first(pool_blocks(k, blocks)),
        v_cmp=_heads_first(pool_blocks(v, blocks)),
        block_of_key=masks.block_of(blocks.offsets, keys),
    )


def _nsa_rows(
    q: Tensor,
    gates: Tensor,
    stream: _Stream,
    *,
    spec: NSASpec,
    blocks: BlockTable,
    first_row: int,
    selected: Tensor | None,
    return_branches: bool,
) -> tuple[Tensor, ...]:
    """One query chunk: the output, or all fields of an `NSAResult`. q `[B, T, HQ, D]`."""
    rows = torch.arange(first_row, first_row + q.shape[1], device=q.device)
    groups = _grouped(q, num_kv_heads=stream.k.shape[1])
    wanted = BRANCHES if return_branches else spec.branches
    done: dict[str, _Attended] = {}
    if "compressed" in wanted or ("selected" in wanted and selected is None):
        done["compressed"] = _compressed(groups, stream, rows, blocks, with_lse=return_branches)
    if "selected" in wanted:
        if selected is None:
            selected = _select_per_row(done["compressed"], rows, spec=spec, blocks=blocks)
        done["selected"] = _selected(
            groups, stream, rows, selected, blocks, first_row=first_row, with_lse=return_branches
        )
    if "window" in wanted:
        done["window"] = _window(
            groups, stream, rows, spec, first_row=first_row, with_lse=return_branches
        )
    output = _gated_sum(done, gates, spec.branches, like=groups)
    if not return_branches:
        return (output.to(q.dtype),)
    assert selected is not None, "every branch was computed"
    return (
        output.to(q.dtype),
        *(_ungrouped(done[name].output).to(q.dtype) for name in BRANCHES),
        *(_rows_first_lse(done[name]) for name in BRANCHES),
        masks.ascending(selected),
    )


def _compressed(
    q: Tensor, stream: _Stream, rows: Tensor, blocks: BlockTable, *, with_lse: bool
) -> _Attended:
    """Attention over the means of the complete blocks. q `[B, H, G, T, D]`."""
    mask = masks.visible(blocks.offsets, rows)[..., : blocks.num_complete]  # [N, T, C']
    return _attend(q, stream.k_cmp, stream.v_cmp, mask[:, None, None], with_lse=with_lse)


def _selected(
    q: Tensor,
    stream: _Stream,
    rows: Tensor,
    selected: Tensor,
    blocks: BlockTable,
    *,
    first_row: int,
    with_lse: bool,
) -> _Attended:
    """Exact attention over the tokens <= t of the selected blocks. q `[B, H, G, T, D]`."""
    stop = first_row + q.shape[3]
    member = masks.membership(selected.transpose(1, 2), blocks.num_blocks)  # [B, H, T, C]
    chosen = member.take_along_dim(stream.block_of_key[:, None, None, :stop], dim=-1)
    mask = chosen & masks.causal(rows, torch.arange(stop, device=q.device))  # [B, H, T, S]
    k, v = stream.k[:, :, :stop], stream.v[:, :, :stop]
    return _attend(q, k, v, mask[:, :, None], with_lse=with_lse)


def _window(
    q: Tensor, stream: _Stream, rows: Tensor, spec: NSASpec, *, first_row: int, with_lse: bool
) -> _Attended:
    """Attention over the last w tokens including t. q `[B, H, G, T, D]`."""
    start, stop = max(first_row - spec.window_size + 1, 0), first_row + q.shape[3]
    mask = masks.windowed(rows, torch.arange(start, stop, device=q.device), spec.window_size)
    k, v = stream.k[:, :, start:stop], stream.v[:, :, start:stop]
    return _attend(q, k, v, mask, with_lse=with_lse)


def _select_per_row(
    compressed: _Attended, rows: Tensor, *, spec: NSASpec, blocks: BlockTable
) -> Tensor:
    """Every row its own selection, from the compressed probabilities: `[B, T, H, n]` int32."""
    with torch.no_grad():
        seen = masks.visible(blocks.offsets, rows)  # [N, T, C]
        current = masks.block_of(blocks.offsets, rows)  # [N, T]
        taken = masks.forced(
            current,
            blocks.num_blocks,
            num_init=spec.num_init_blocks,
            num_local=spec.num_local_blocks,
        )
        importance = compressed.probability.sum(dim=2)  # [B, H, T, C']
        importance = F.pad(importance, (0, blocks.num_blocks - importance.shape[-1]))
        selected = masks.top_blocks(
            importance, seen[:, None], taken[:, None], spec.num_selected_blocks
        )
        return selected.transpose(1, 2)


def _select_per_block(
    q: Tensor,
    stream: _Stream,
    *,
    spec: NSASpec,
    blocks: BlockTable,
    first_row: int,
    chunk_size: int,
) -> Tensor:
    """All rows of a block share one selection among the blocks before it: `[B, T, H, n]` int32."""
    num_samples, num_rows = q.shape[:2]
    num_blocks, num_kv_heads = blocks.num_blocks, stream.k.shape[1]
    rows = torch.arange(first_row, first_row + num_rows, device=q.device)
    current = masks.block_of(blocks.offsets, rows)  # [N, T]
    block = torch.arange(num_blocks, device=q.device)[None]  # [1, C]
    with torch.no_grad():
        total = stream.k.new_zeros(num_samples, num_kv_heads, num_blocks, num_blocks)
        for start in range(0, num_rows, chunk_size):
            chunk = slice(start, start + chunk_size)
            groups = _grouped(q[:, chunk], num_kv_heads=num_kv_heads)
            compressed = _compressed(groups, stream, rows[chunk], blocks, with_lse=False)
            importance = compressed.probability.sum(dim=2)  # [B, H, T, C']
            importance = F.pad(importance, (0, num_blocks - importance.shape[-1]))
            is_own = block[..., None] == current[:, None, chunk]  # [N, C, T]
            # Rows that see no block stand in block 0, which has no candidates.
            every_row = is_own[:, None, None].to(total.dtype)  # [N, 1, 1, C, T]
            every_row = every_row.expand(num_samples, num_kv_heads, -1, -1, -1)
            total += masked_sum(every_row, importance, is_own[:, None, None])[:, :, 0]
        taken = masks.forced(
            block, num_blocks, num_init=spec.num_init_blocks, num_local=spec.num_local_blocks
        )
        before = block[0] < block[0][:, None]  # [C, C]
        shared = masks.top_blocks(total, before, taken[:, None], spec.num_selected_blocks)
        return shared.transpose(1, 2).take_along_dim(current[..., None, None], dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, with_lse: bool = False) -> _Attended:
    """Masked softmax attention; a row without keys gives 0, LSE -inf and no gradient.

    q `[B, H, G, T, D]`; k, v `[B, H, S, D]`; mask bool, broadcasts to `[B, H, G, T, S]`. Masked
    scores are the lowest finite number, so that softmax and its gradient never meet inf - inf.
    """
    scores = masked_scores(q * q.shape[-1] ** -0.5, k, mask)
    probability = scores.softmax(dim=-1)
    empty = ~mask.any(dim=-1)
    output = masked_sum(probability, v, mask).masked_fill(empty[..., None], 0)
    lse = scores.logsumexp(dim=-1).masked_fill(empty, -torch.inf) if with_lse else None
    return _Attended(output, probability, lse)


def _gated_sum(
    done: dict[str, _Attended], gates: Tensor, branches: tuple[str, ...], *, like: Tensor
) -> Tensor:
    """The listed branches times their gates: `[B, T, HQ, D]` in the compute dtype."""
    output = torch.zeros_like(_ungrouped(like))
    for i, name in enumerate(BRANCHES):
        if name in branches:
            output = output + gates[..., i, None].to(like.dtype) * _ungrouped(done[name].output)
    return output


def in_chunks(
    attend: Callable[[int, int], tuple[Tensor, ...]], num_rows: int, chunk_size: int
) -> tuple[Tensor, ...]:
    """Concatenates `attend(start, stop)` over query chunks; several are recomputed in backward."""
    starts = range(0, num_rows, chunk_size)
    if len(starts) <= 1:
        return attend(0, num_rows)
    parts = []
    for start in starts:
        stop = min(start + chunk_size, num_rows)
        if torch.is_grad_enabled():
            parts.append(
                checkpoint(attend, start, stop, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            parts.append(attend(start, stop))
    return tuple(torch.cat(field, dim=1) for field in zip(*parts, strict=True))


def _heads_first(x: Tensor) -> Tensor:
    """`[B, S, H, D]` -> `[B, H, S, D]` in the compute dtype, contiguous for the products."""
    return x.transpose(1, 2).to(compute_dtype(x)).contiguous()


def _grouped(q: Tensor, *, num_kv_heads: int) -> Tensor:
    """`[B, T, HQ, D]` -> `[B, H, G, T, D]` in the compute dtype: KV head j = h // G."""
    num_samples, num_rows, num_query_heads, dim = q.shape
    grouped = num_kv_heads, num_query_heads // num_kv_heads
    groups = q.to(compute_dtype(q)).reshape(num_samples, num_rows, *grouped, dim)
    return groups.permute(0, 2, 3, 1, 4)


def _ungrouped(x: Tensor) -> Tensor:
    """`[B, H, G, T, D]` -> `[B, T, HQ, D]`."""
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _rows_first_lse(branch: _Attended) -> Tensor:
    """The LSE as `[B, T, HQ]` float32."""
    assert branch.lse is not None, "asked for with the branches"
    return branch.lse.permute(0, 3, 1, 2).flatten(2, 3).float()
