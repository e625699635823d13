"""Text rows beside the kernels of the vision rows: PyTorch's fused attention, or our own kernel."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops import masks
from videonsa.ops.causal import autocast, causal_attention
from videonsa.ops.reference import in_chunks
from videonsa.ops.triton.support import why_not_rows

MASK_ELEMENTS = 2**27
"""Of the mask of one chunk of rows, which PyTorch widens to the dtype of q."""


def dense_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    positions: Tensor,
    key_mask: Tensor | None = None,
    runs: Sequence[tuple[int, int, int]] | None = None,
) -> Tensor:
    """Causal grouped-query attention of single rows over all keys, as `dense_reference`.

    Where no gradient and no mask is wanted, a kernel shares the keys out among the whole GPU. With
    gradients, rows that follow one another go through FlashAttention, run by run. Else the heads
    of a group become rows of one head for PyTorch: a few rows over many keys then fill the tiles
    of a fused kernel, and no key is repeated. Values that are not finite are kept from PyTorch, in
    whose kernels they would reach rows that do not see them; the rows that do are NaN.

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        positions: `[B, T]` int: the key position of each row; it sees the keys up to itself. A row
            at -1 sees none and gives 0.
        key_mask: `[B, S]` bool: keys that exist. Default: all, and positions ascend from 0 on.
        runs: all rows as runs of consecutive positions, the same in all samples: first row, rows,
            and the keys that the last of them sees. Without `key_mask`.

    Returns:
        `[B, T, HQ, D]` in the dtype of `q`.
    """
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if key_mask is None and not wants_grad and why_not_rows(q, k) is None:
        from videonsa.ops.triton.dense import dense_rows_in_parts  # needs Triton

        return dense_rows_in_parts(q, k, v, positions)
    if runs is not None and wants_grad:
        return _rows_in_runs(q, k, v, positions, runs)
    num_keys, num_kv_heads = k.shape[1:3]
    group = q.shape[2] // num_kv_heads
    keys = torch.arange(num_keys, device=k.device)
    is_query = q.isfinite().all(-1)  # [B, T, HQ]
    is_key = k.isfinite().all(-1) & v.isfinite().all(-1)  # [B, S, H]
    q = torch.where(is_query[..., None], q, 0)
    k, v = (torch.where(is_key[..., None], x, 0) for x in (k, v))
    no_key = (~is_key).to(q.dtype)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    size = max(1, MASK_ELEMENTS // max(1, len(q) * num_keys * group))

    def attend(start: int, stop: int) -> tuple[Tensor, ...]:
        mask = masks.causal(positions[:, start:stop], keys)  # [B, t, S]
        if key_mask is not None:
            mask = mask & key_mask[:, None]
        sees = mask.any(-1)
        sees_no_key = (mask.to(q.dtype) @ no_key).repeat_interleave(group, -1) > 0  # [B, t, HQ]
        poisoned = sees_no_key | (~is_query[:, start:stop] & sees[..., None])
        # No kernel is asked what a row without keys gives.
        mask = (mask | ~sees[..., None])[:, None, :, None].expand(-1, -1, -1, group, -1)
        lines = q[:, start:stop].unflatten(2, (num_kv_heads, group)).permute(0, 2, 1, 3, 4)
        out = F.scaled_dot_product_attention(  # of [B, H, t * G, D]
            lines.flatten(2, 3), k, v, attn_mask=mask.flatten(2, 3)
        ).unflatten(2, lines.shape[2:4])
        out = torch.where(sees[:, None, :, None, None], out, 0)
        out = out.permute(0, 2, 1, 3, 4).flatten(2, 3).to(q.dtype)
        return (out.masked_fill(poisoned[..., None], torch.nan),)

    return in_chunks(attend, q.shape[1], size)[0]


def _rows_in_runs(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, runs: Sequence[tuple[int, int, int]]
) -> Tensor:
    """The rows of a run are the last of its keys. Arguments as those of `dense_rows`."""
    dtype, (q, k, v) = q.dtype, autocast(q, k, v)
    is_query, is_key = _are_finite(q), _are_finite(k) & _are_finite(v)
    q = torch.where(is_query[..., None], q, 0)
    k, v = (torch.where(is_key[..., None], x, 0) for x in (k, v))
    outputs = [
        causal_attention(rows, k[:, :num_keys], v[:, :num_keys])
        for rows, (_, _, num_keys) in zip(q.split([run[1] for run in runs], 1), runs, strict=True)
    ]
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    keys = torch.arange(k.shape[1], device=k.device)[:, None]
    first_no_key = torch.where(is_key, k.shape[1], keys).amin(1)  # [B, H]
    sees_no_key = positions[..., None] >= first_no_key[:, None]  # [B, T, H]
    group = q.shape[2] // k.shape[2]
    poisoned = sees_no_key.repeat_interleave(group, -1) | ~is_query
    return out.to(dtype).masked_fill(poisoned[..., None], torch.nan)


def _are_finite(x: Tensor) -> Tensor:
    """Vectors `[..., D]` without a value that is not finite: `[...]` bool, in one pass over x."""
    norm: Tensor = torch.linalg.vector_norm(x.detach(), torch.inf, dim=-1)
    return norm.isfinite()
