"""NSA with given blocks in plain PyTorch, every step rounded to the dtype of the inputs.

The measure of an op's error: what the same formula loses when nobody takes care.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.bench.attention_inputs import Inputs
from videonsa.bench.attention_shapes import Shape
from videonsa.bench.op_calls import Scope
from videonsa.ops import masks
from videonsa.ops.reference import pool_blocks
from videonsa.ops.varlen import BlockTable, block_borders, block_table


class PlainResult(NamedTuple):
    """Names as in `NSAResult`; `[1, T, HQ, D]`."""

    output: Tensor
    o_cmp: Tensor
    o_slc: Tensor
    o_win: Tensor


def blocks_of(shape: Shape, device: torch.device) -> BlockTable:
    """The blocks of a shape's one stream."""
    borders = block_borders(shape.block_size, shape.frame_sizes, [shape.tokens])
    return block_table(borders, shape.tokens, device=device)


def plain_nsa(inputs: Inputs, shape: Shape, selected_blocks: Tensor) -> PlainResult:
    """The three branches and their gated sum, one KV head at a time.

    Args:
        inputs: of the shape.
        shape: what to compute.
        selected_blocks: `[1, T, H, n]` int, negative for none.
    """
    q, k, v, gates = inputs
    table = blocks_of(shape, q.device)
    k_cmp, v_cmp = pool_blocks(k, table), pool_blocks(v, table)
    rows = torch.arange(shape.tokens, device=q.device)
    seen = masks.visible(table.offsets, rows)[0, :, : table.num_complete]
    window = masks.windowed(rows, rows, shape.window)
    block_of_key = masks.block_of(table.offsets, rows)[0]
    group = shape.query_heads // shape.kv_heads
    parts = []
    for head in range(shape.kv_heads):
        heads = q[0, :, head * group : (head + 1) * group].transpose(0, 1)  # [G, T, D]
        member = masks.membership(selected_blocks[0, :, head], table.num_blocks)
        chosen = member[:, block_of_key] & masks.causal(rows, rows)
        keys, values = k[0, :, head], v[0, :, head]
        parts.append(
            (
                _attend(heads, k_cmp[0, :, head], v_cmp[0, :, head], seen),
                _attend(heads, keys, values, chosen),
                _attend(heads, keys, values, window),
            )
        )
    branches = [torch.cat(heads).transpose(0, 1)[None] for heads in zip(*parts, strict=True)]
    output = torch.zeros_like(q)
    for index, branch in enumerate(branches):
        output = output + gates[..., index, None].to(q.dtype) * branch
    return PlainResult(output, *branches)


def importances(inputs: Inputs, shape: Shape, *, scope: Scope, dtype: torch.dtype) -> Tensor:
    """What the selection of each row and KV head goes by, all steps in one dtype.

    The pooled keys are rounded to the dtype of the inputs first, as docs/semantics.md says.

    Returns:
        `[1, T, H, C]`: the importance of the candidates, inf for the current block, which is
        always selected, and -inf for blocks that cannot be.
    """
    table = blocks_of(shape, inputs.q.device)
    rows = torch.arange(shape.tokens, device=inputs.q.device)
    k_cmp = pool_blocks(inputs.k, table).to(dtype)
    seen = masks.visible(table.offsets, rows)[0]  # [T, C]
    current = masks.block_of(table.offsets, rows)[0]  # [T]
    missing = table.num_blocks - table.num_complete
    group = shape.query_heads // shape.kv_heads
    parts = []
    for head in range(shape.kv_heads):
        heads = inputs.q[0, :, head * group : (head + 1) * group].transpose(0, 1).to(dtype)
        weights = _weights(heads, k_cmp[0, :, head], seen[:, : table.num_complete])
        parts.append(F.pad(weights.sum(dim=0), (0, missing)))  # [T, C]
    total = torch.stack(parts, dim=1)  # [T, H, C]
    block = torch.arange(table.num_blocks, device=total.device)
    candidates = seen
    if scope == "block":
        of_block = total.new_zeros(table.num_blocks, *total.shape[1:])
        total = of_block.index_add(0, current, total)[current]
        candidates = block < current[:, None]
    total = total.masked_fill(~candidates[:, None], -torch.inf)
    return total.masked_fill((block == current[:, None])[:, None], torch.inf)[None]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`[G, T, D]` from q `[G, T, D]`, k and v `[S, D]`, mask `[T, S]`; 0 for a row without keys."""
    return _weights(q, k, mask) @ v


def _weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Softmax weights `[G, T, S]`; 0 for a row without keys."""
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(0, 1)
    weights = scores.masked_fill(~mask, torch.finfo(q.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0)
