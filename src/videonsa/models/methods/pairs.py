"""How many query-key pairs attention computes: what a method that measures none is counted by."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videonsa.models.costs import AttentionCall
from videonsa.ops.spec import MAX_BLOCK_SIZE, NSASpec

if TYPE_CHECKING:
    from videonsa.models.step import StepTokens


def causal_pairs(num_rows: int, num_keys: int | None = None) -> int:
    """Of rows that are the last of the keys, each with itself and the keys before it.

    Args:
        num_rows: T.
        num_keys: S; None: T.
    """
    before = 0 if num_keys is None else num_keys - num_rows
    return num_rows * before + num_rows * (num_rows + 1) // 2


def pairs_of_rows(tokens: "StepTokens") -> int:
    """Of dense attention of all samples; rows and keys that are padded count like others."""
    if tokens.segments is not None:
        return sum(causal_pairs(rows, keys) for rows, keys in tokens.segments)
    num_samples, num_keys = tokens.vision_mask.shape
    return num_samples * causal_pairs(tokens.num_tokens, num_keys)


def nsa_pairs(tokens: "StepTokens", spec: NSASpec) -> Tensor:
    """Of NSA, int64 `[]` on the device: dense text rows, and the branches of vision rows.

    A compressed block is one key. Frames that are blocks count as of their mean size.

    Args:
        tokens: with a vision token; neither packed nor sharded.
        spec: of the attention; in the released preset every row is in the stream, and text rows
            attend densely beside it.
    """
    whole = spec.stream == "sequence"
    num_keys, device = tokens.vision_mask.shape[1], tokens.vision_mask.device
    ends = torch.arange(1, num_keys + 1, device=device)[-tokens.num_tokens :]  # keys up to a row
    is_vision = tokens.vision_mask
    if tokens.attention_mask is not None:
        is_vision = is_vision & tokens.attention_mask
    own = is_vision[:, -tokens.num_tokens :]
    ranks = ends.expand_as(own) if whole else is_vision.cumsum(1)[:, -tokens.num_tokens :]
    size = spec.block_size
    if size == "frame":
        sizes = [one for one in tokens.frame_sizes() if one]
        size = _mean_block(sum(sizes), sum(-(-one // MAX_BLOCK_SIZE) for one in sizes))
    keys = branch_keys(ranks, spec, block_size=size, num_keys=num_keys)
    text = torch.where(own, 0, ends).sum()
    return text + (keys if whole else keys * own).sum()


def nsa_prompt_pairs(call: AttentionCall, spec: NSASpec) -> float:
    """Of a whole prompt in all layers, its text behind the video."""
    whole = spec.stream == "sequence"
    size = spec.block_size
    if size == "frame":
        parts = -(-call.tokens_per_frame // MAX_BLOCK_SIZE)
        size = _mean_block(call.video_tokens, call.num_frames * parts)
    num_rows = call.prompt_tokens if whole else call.video_tokens
    keys = branch_keys(torch.arange(1, num_rows + 1), spec, block_size=size, num_keys=num_rows)
    text = causal_pairs(call.prompt_tokens) - causal_pairs(call.video_tokens)
    return float(call.num_layers * (text + int(keys.sum())))


def branch_keys(ranks: Tensor, spec: NSASpec, *, block_size: int, num_keys: int) -> Tensor:
    """Keys that a row of the stream attends to in the branches that are on, int64 as `ranks`.

    Args:
        ranks: int64, keys of the stream up to and with the row.
        spec: of the attention.
        block_size: tokens of a block.
        num_keys: of the whole stream.
    """
    before = (ranks - 1).clamp(min=0) // block_size  # blocks before the current one
    in_current = ranks - before * block_size
    complete = {
        "past_complete": ranks // block_size,
        "past_and_current": before + 1,
        "current_and_later": -(-num_keys // block_size) - before,
    }
    keys = {
        "compressed": complete[spec.compressed_mask],
        "selected": before.clamp(max=spec.num_selected_blocks - 1) * block_size + in_current,
        "window": ranks.clamp(max=spec.window_size),
    }
    return sum((keys[branch] for branch in spec.branches), torch.zeros_like(ranks))


def _mean_block(num_tokens: int, num_blocks: int) -> int:
    return max(-(-num_tokens // max(num_blocks, 1)), 1)
