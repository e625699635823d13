"""NSA of one stream in plain PyTorch and in the dtype of its inputs: the yardstick of errors.

Every product and every tensor is rounded to that dtype, softmax alone is float32. Kernels may be
twice as far from the float64 reference as this.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from videonsa.ops import NSAResult, NSASpec


def plain_nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    selected: Tensor,
    *,
    borders: Sequence[int],
    first_row: int,
    spec: NSASpec,
) -> NSAResult:
    """All branches of one stream, given its selection.

    q `[T, HQ, D]`; k, v `[S, H, D]`; gates `[T, HQ, 3]`; selected `[T, H, n]`; borders: block c is
    [borders[c], borders[c + 1]).
    """
    num_keys, group = len(k), q.shape[1] // k.shape[1]
    row = torch.arange(first_row, first_row + len(q), device=q.device)[:, None]
    key = torch.arange(num_keys, device=q.device)
    border = torch.tensor(borders, device=q.device)
    block = torch.searchsorted(border, key, right=True) - 1
    complete = [(start, stop) for start, stop in pairwise(borders) if stop <= num_keys]
    # A block more takes the entries that are no block.
    chosen = selected.new_zeros((len(q), k.shape[1], len(borders)), dtype=torch.bool)
    chosen.scatter_(2, torch.where(selected < 0, len(borders) - 1, selected).long(), True)
    causal = key <= row  # [T, S]
    mask_of_heads = (chosen[:, :, block] & causal[:, None]).transpose(0, 1)  # [H, T, S]
    ends = border[1 : len(complete) + 1]
    branches = (
        _attend(q, _means(k, complete), _means(v, complete), ends <= row + 1),
        _attend(q, k, v, mask_of_heads.repeat_interleave(group, dim=0)),
        _attend(q, k, v, causal & (key > row - spec.window_size)),
    )
    output = torch.zeros_like(q)
    for i, name in enumerate(("compressed", "selected", "window")):
        if name in spec.branches:
            output = output + gates[..., i, None].to(q.dtype) * branches[i][0]
    outputs, lses = zip(*branches, strict=True)
    return NSAResult(output, *outputs, *lses, selected)


def _means(x: Tensor, blocks: Sequence[tuple[int, int]]) -> Tensor:
    means = [x[start:stop].float().mean(dim=0).to(x.dtype) for start, stop in blocks]
    return torch.stack(means) if means else x[:0]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Output `[T, HQ, D]` and LSE `[T, HQ]`; mask broadcasts to `[HQ, T, S]`."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.transpose(0, 1).repeat_interleave(group, dim=0) for x in (k, v))
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)) * q.shape[2] ** -0.5
    scores = scores.float().masked_fill(~mask, -torch.inf)
    probability = scores.softmax(dim=2).nan_to_num(0)  # a row without keys
    output = probability.to(v.dtype) @ v
    return output.transpose(0, 1), scores.logsumexp(dim=2).transpose(0, 1)
