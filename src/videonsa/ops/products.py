"""The products of masked attention: what a row does not see adds nothing, whatever it holds.

0 times NaN is NaN, so a weight of 0 does not keep a value out of a sum. Here a value that is not
finite makes the sums NaN that it belongs to, and no other, in both passes. Letters: B batch, H KV
heads, G query heads of one, T rows, S keys, D head dim; a mask broadcasts to [B, H, G, T, S] and is
the same for all G.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def masked_scores(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Scores `[B, H, G, T, S]` of q `[B, H, G, T, D]` and k `[B, H, S, D]`; masked, the lowest."""
    scores: Tensor = _Scores.apply(q, k, mask)  # type: ignore[no-untyped-call]
    return scores


def masked_sum(weights: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Sum over the keys of weights `[B, H, G, T, S]` times v `[B, H, S, D]`: `[B, H, G, T, D]`."""
    total: Tensor = _Sum.apply(weights, v, mask)  # type: ignore[no-untyped-call]
    return total


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, mask)
        scores = _over_dims(q, k)
        return torch.where(mask, scores, torch.finfo(scores.dtype).min)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        q, k, mask = ctx.saved_tensors
        grad = torch.where(mask, grad, 0)
        return _over_keys(grad, k, mask), _over_rows(grad, q, mask), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weights, v, mask)
        return _over_keys(weights, v, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, v, mask = ctx.saved_tensors
        of_weights = torch.where(mask, _over_dims(grad, v), 0)
        return of_weights, _over_rows(torch.where(mask, weights, 0), grad, mask), None


def _over_dims(x: Tensor, y: Tensor) -> Tensor:
    """X `[B, H, G, T, D]`, y `[B, H, S, D]` -> `[B, H, G, T, S]`."""
    scores: Tensor = (x.flatten(2, 3) @ y.mT).unflatten(2, x.shape[2:4])
    return scores


def _over_keys(weights: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Weights `[B, H, G, T, S]`, y `[B, H, S, D]` -> `[B, H, G, T, D]`."""
    finite = y.isfinite().all(-1, keepdim=True)  # [B, H, S, 1]
    total: Tensor = weights.flatten(2, 3) @ torch.where(finite, y, 0)
    total = total.unflatten(2, weights.shape[2:4])
    poisoned = mask.to(y.dtype) @ (~finite)[:, :, None].to(y.dtype)  # [B, H, 1, T, 1]
    return total.masked_fill(poisoned > 0, torch.nan)


def _over_rows(weights: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Weights `[B, H, G, T, S]`, x `[B, H, G, T, D]` -> `[B, H, S, D]`."""
    finite = x.isfinite().all(-1, keepdim=True)  # [B, H, G, T, 1]
    total = weights.flatten(2, 3).mT @ torch.where(finite, x, 0).flatten(2, 3)
    poison = (~finite).any(2, keepdim=True).to(x.dtype)  # [B, H, 1, T, 1]
    poisoned = (mask.to(x.dtype).mT @ poison)[:, :, 0]  # [B, H, S, 1]
    return total.masked_fill(poisoned > 0, torch.nan)
