"""Causal attention over lists of key tiles and single columns, one list for each query head."""

import logging
from functools import cache
from typing import Literal, overload

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.arguments import check_int, check_type, shown
from videonsa.ops.block_lists import BlockLists, Trim, check_lists, computed_pairs, from_mask
from videonsa.ops.block_sparse_reference import block_sparse_reference
from videonsa.ops.causal import autocast
from videonsa.ops.checks import DTYPES
from videonsa.ops.nsa import Backend
from videonsa.ops.triton.support import why_not_block_sparse

__all__ = [
    "BlockLists",
    "block_sparse_attention",
    "check_lists",
    "computed_pairs",
    "from_mask",
]

_logger = logging.getLogger(__name__)


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    num_init: int = ...,
    window: int | None = ...,
    num_last: int = ...,
    return_lse: Literal[False] = ...,
    backend: Backend = ...,
    scale: float | None = ...,
) -> Tensor: ...
@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    num_init: int = ...,
    window: int | None = ...,
    num_last: int = ...,
    return_lse: Literal[True],
    backend: Backend = ...,
    scale: float | None = ...,
) -> tuple[Tensor, Tensor]: ...
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    num_init: int = 0,
    window: int | None = None,
    num_last: int = 0,
    return_lse: bool = False,
    backend: Backend = "auto",
    scale: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention of one whole sample over the keys that its lists name.

    Row i attends to the keys j <= i of `lists` and, with a window, to those of them alone for which
    j < num_init, i - j < window or i >= T - num_last. A row without any gives 0. The host never
    waits for the device in the kernels, so what the lists hold is not checked (`check_lists`).

    Args:
        q: `[T, HQ, D]`, float16, bfloat16, float32 or float64.
        k: `[T, H, D]`, same dtype and device; HQ is a multiple of H, query head h reads KV head
            h // (HQ / H).
        v: `[T, H, D]`.
        lists: of HQ heads and T rows, on the device of q.
        num_init: first keys that every row keeps; read only with a window.
        window: keys up to and including its own that a row keeps. Default: all.
        num_last: last rows that keep all keys of their lists; read only with a window.
        return_lse: give the LSE too.
        backend: "triton" (a kernel, an NVIDIA GPU, no gradients), "reference" (any device), or
            "auto": the kernel where it can, and a line in the log where it cannot.
        scale: of the scores. Default: D^-0.5.

    Returns:
        `[T, HQ, D]` in the dtype of q; with `return_lse` also the natural-log LSE, `[T, HQ]`
        float32, -inf for a row without keys.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit.
    """
    _check_inputs(q, k, v, lists)
    trim = _trim(num_init, window, num_last)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if _use_kernel(backend, q, k, v):
        from videonsa.ops.triton.block_sparse import block_sparse_triton  # needs Triton

        dtype = q.dtype
        q, k, v = autocast(q, k, v)
        out, lse = block_sparse_triton(q, k, v, lists, trim=trim, scale=scale)
        out = out.to(dtype)
    else:
        out, lse = block_sparse_reference(q, k, v, lists, trim=trim, scale=scale)
    return (out, lse) if return_lse else out


def _use_kernel(backend: str, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the Triton kernel computes; says in the log why "auto" leaves a GPU to PyTorch."""
    if not isinstance(backend, str) or backend not in ("auto", "reference", "triton"):
        raise UsageError(f"backend={shown(backend)}: want 'auto', 'reference' or 'triton'")
    if backend == "reference":
        return False
    reason = why_not_block_sparse(q)
    if reason is None and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        reason = "gradients are wanted, block-sparse attention has no backward kernel"
    if reason is None and backend == "auto" and not q.is_cuda:
        reason = "the kernel would run in Triton's interpreter"
    if backend == "triton" and reason is not None:
        raise UsageError(f"backend='triton': {reason}; use 'auto' or 'reference'")
    if reason is not None and q.is_cuda:
        _say_reference(reason)
    return reason is None


@cache
def _say_reference(reason: str) -> None:
    """One line for each reason, not one a call."""
    _logger.warning("block-sparse attention takes 'reference': %s", reason)


def _trim(num_init: int, window: int | None, num_last: int) -> Trim | None:
    for name, value in (("num_init", num_init), ("num_last", num_last)):
        check_int(value, name)
        if value < 0 or (value > 0 and window is None):
            raise UsageError(f"{name} is {value}, window {window}: want 0 or more, with a window")
    if window is None:
        return None
    check_int(window, "window")
    if window < 1:
        raise UsageError(f"window is {window}: want at least 1, the row's own key")
    return Trim(num_init, window, num_last)


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_type(x, Tensor, name)
    check_type(lists, BlockLists, "lists")
    shapes = f"q, k, v are {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
    if q.dim() != 3 or k.dim() != 3 or v.shape != k.shape or 0 in (*q.shape, *k.shape):
        raise UsageError(f"{shapes}: want [T, HQ, D] and twice [T, H, D], none of them 0")
    if len(q) != len(k) or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise UsageError(
            f"{shapes}: want the same T and D, and query heads that are a multiple of the KV heads"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise UsageError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: want one of float16, bfloat16, float32 "
            "and float64"
        )
    if not q.device == k.device == v.device == lists.tiles.device:
        raise UsageError(
            f"q, k, v and the lists are on {q.device}, {k.device}, {v.device} and "
            f"{lists.tiles.device}: want one device"
        )
    num_tiles = -(-len(q) // lists.query_tile)
    if (lists.num_heads, lists.num_query_tiles) != (q.shape[1], num_tiles):
        raise UsageError(
            f"the lists are of {lists.num_heads} heads and {lists.num_query_tiles} tiles of "
            f"{lists.query_tile} rows, q is {list(q.shape)}: want {q.shape[1]} and {num_tiles}"
        )
