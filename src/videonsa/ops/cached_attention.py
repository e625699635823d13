"""Dense attention of a few new rows over a long cache whose length is read on the device."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.checks import DTYPES
from videonsa.ops.products import masked_scores, masked_sum
from videonsa.ops.triton.support import why_not_cached


class SharedKeys(NamedTuple):
    """Keys that every row of every sample sees whole, before its own."""

    k: Tensor  # [1, P, H, D]
    v: Tensor  # [1, P, H, D]
    length: Tensor  # [1] int32, on the device of k: how many of the P are held


Stretch: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of one sample, each `[S, H, D]`."""


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    *,
    shared: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Causal grouped-query attention of T new rows of each sample over its memory.

    Row t of sample i sees the keys [0, starts[i] + t + 1) of its own memory, after those of
    `shared`. Whatever lies behind them in the memory changes no bit. On an NVIDIA GPU kernels read
    the lengths on the device, and a CUDA graph may hold the call; elsewhere, and where a gradient
    is wanted, the host reads them.

    Args:
        q: `[N, T, HQ, D]`, float16, bfloat16, float32 or float64.
        k: `[N, M, H, D]`, same dtype and device; the T new keys are already written in it. HQ is a
            multiple of H.
        v: `[N, M, H, D]`.
        starts: `[N]` int32 on the device of q: keys of each sample before its T new ones, at most
            M - T.
        shared: k and v `[1, P, H, D]` and their length, `[1]` int32 on the device of q and at most
            P, which may be 0: see `SharedKeys`.

    Returns:
        `[N, T, HQ, D]` in the dtype of q, computed in float32 or better.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit. The values of `starts` and of the
            length are not checked: that would wait for the device.
    """
    prefix = None if shared is None else SharedKeys(*shared)
    _check(q, k, v, starts, prefix)
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not wants_grad and why_not_cached(q) is None:
        from videonsa.ops.triton.cached import cached_attention_triton  # needs Triton

        return cached_attention_triton(q, k, v, starts, prefix)
    return _reference(q, k, v, starts, prefix)


def _reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, shared: SharedKeys | None
) -> Tensor:
    """Sample by sample; reads the lengths on the host."""
    before: list[Stretch] = []
    if shared is not None:
        length = int(shared.length)
        before = [(shared.k[0, :length], shared.v[0, :length])]
    samples = []
    for i, start in enumerate(starts.tolist()):
        end = start + q.shape[1]
        own = (k[i, :start], v[i, :start])
        samples.append(_attend(q[i], [*before, own], (k[i, start:end], v[i, start:end])))
    return torch.stack(samples)


def _attend(q: Tensor, seen: Sequence[Stretch], new: Stretch) -> Tensor:
    """Rows `[T, HQ, D]` over stretches that all of them see, and over their own T keys.

    So a mask is needed for T * T scores alone.
    """
    num_rows, _, dim = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    mask = torch.ones(num_rows, num_rows, dtype=torch.bool, device=q.device).tril()
    stretches = [tuple(x.transpose(0, 1).to(dtype) for x in kv) for kv in (*seen, new)]
    num_kv_heads = len(stretches[0][0])
    lines = (q.to(dtype) * dim**-0.5).unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)
    scores = [lines.flatten(1, 2) @ k.mT for k, _ in stretches[:-1]]  # each [H, G * T, S]
    scores = [x.unflatten(1, lines.shape[1:3]) for x in scores]
    scores.append(masked_scores(lines[None], stretches[-1][0][None], mask)[0])
    weights = torch.cat(scores, -1).softmax(-1).split([x.shape[-1] for x in scores], -1)
    out = masked_sum(weights[-1][None], stretches[-1][1][None], mask)[0]  # [H, G, T, D]
    for part, (_, v) in zip(weights[:-1], stretches[:-1], strict=True):
        out = out + (part.flatten(1, 2) @ v).unflatten(1, lines.shape[1:3])
    return out.permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, shared: SharedKeys | None) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.shape != k.shape or 0 in (*q.shape, *k.shape):
        raise UsageError(
            f"q, k, v are {list(q.shape)}, {list(k.shape)}, {list(v.shape)}: want [N, T, HQ, D] "
            "and twice [N, M, H, D], none of them 0"
        )
    fits = q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and q.shape[1] <= k.shape[1]
    if not fits or q.shape[2] % k.shape[2]:
        raise UsageError(
            f"q is {list(q.shape)}, k is {list(k.shape)}: want the same N and D, room for the T "
            "new keys, and query heads that are a multiple of the KV heads"
        )
    tensors = [q, k, v]
    lengths = {"starts": (starts, q.shape[0])}
    if shared is not None:
        if shared.k.shape != shared.v.shape or shared.k.shape != (
            1,
            shared.k.shape[1],
            *k.shape[2:],
        ):
            raise UsageError(
                f"shared k and v are {list(shared.k.shape)} and {list(shared.v.shape)}, k is "
                f"{list(k.shape)}: want [1, P, H, D]"
            )
        tensors += [shared.k, shared.v]
        lengths["the shared length"] = (shared.length, 1)
    kinds = {(x.dtype, x.device) for x in tensors}
    if len(kinds) > 1 or q.dtype not in DTYPES:
        raise UsageError(
            f"queries, keys and values are {', '.join(sorted(f'{a} on {b}' for a, b in kinds))}: "
            "want one of float16, bfloat16, float32 and float64, on one device"
        )
    for name, (length, size) in lengths.items():
        if length.shape != (size,) or length.dtype != torch.int32 or length.device != q.device:
            raise UsageError(
                f"{name} is {length.dtype} {list(length.shape)} on {length.device}: want int32 "
                f"[{size}] on {q.device}"
            )
