"""Causal attention over lists of key tiles and single columns, one list for each query head."""

from typing import Literal, overload

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.arguments import check_int, check_type
from videonsa.ops.block_lists import BlockLists, Trim, check_lists, computed_pairs, from_mask
from videonsa.ops.block_sparse_reference import block_sparse_reference
from videonsa.ops.checks import DTYPES
from videonsa.ops.nsa import Backend

__all__ = [
    "BlockLists",
    "block_sparse_attention",
    "check_lists",
    "computed_pairs",
    "from_mask",
]


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
    out, lse = block_sparse_reference(q, k, v, lists, trim=trim, scale=scale)
    return (out, lse) if return_lse else out


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
