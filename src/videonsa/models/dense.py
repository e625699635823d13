"""Dense causal attention of a step: by PyTorch's fused attention, part by part where padded."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from videonsa.ops.causal import causal_attention, packed_causal_attention, takes_packed
from videonsa.ops.text_rows import dense_rows


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    pieces: Sequence[tuple[int, int]] | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Causal GQA of the last T rows over all S keys.

    Without padding no mask of T * S entries is made on a GPU in float16 or bfloat16
    (`causal_attention`), and packed samples are attended to in one call; elsewhere sample by
    sample, unless they are of equal lengths. With padding rows go part by part with a mask of
    bounded size (`dense_rows`).

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        key_mask: bool `[B, S]`, False where padded; None where nothing is. A row that sees no key
            gets 0.
        pieces: rows and keys of each packed sample; its rows are the last of its keys, and see no
            others. B = 1, no `key_mask`.
        cu_seqlens: `cumulative_lengths(pieces)` on the device, so that the layers of a step share
            it. Default: it is made here.

    Returns:
        `[B, T, HQ, D]`.
    """
    if pieces is not None:
        return _packed(q[0], k[0], v[0], pieces, cu_seqlens)[None]
    if key_mask is None:
        return causal_attention(q, k, v)
    num_rows, num_keys = q.shape[1], k.shape[1]
    positions = torch.arange(num_keys - num_rows, num_keys, device=k.device).expand(len(q), -1)
    return dense_rows(q, k, v, positions=positions, key_mask=key_mask)


def cumulative_lengths(
    pieces: Sequence[tuple[int, int]] | None, *, device: torch.device
) -> Tensor | None:
    """`cu_seqlens` of rows and of keys, int32 `[2, N + 1]`; None where none are needed.

    That is where samples are not packed, or all have equally many rows and keys.
    """
    if pieces is None or _are_equal(pieces):
        return None
    lengths = [[0, *accumulate(counts)] for counts in zip(*pieces, strict=True)]
    return torch.tensor(lengths, dtype=torch.int32).to(device, non_blocking=True)


def _are_equal(pieces: Sequence[tuple[int, int]]) -> bool:
    return all(tuple(piece) == tuple(pieces[0]) for piece in pieces)


def _packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pieces: Sequence[tuple[int, int]],
    cu_seqlens: Tensor | None,
) -> Tensor:
    """Tensors without the dimension of the batch: `[T, HQ, D]`, `[S, H, D]` twice."""
    if _are_equal(pieces):
        batch = (x.unflatten(0, (len(pieces), -1)) for x in (q, k, v))
        return causal_attention(*batch).flatten(0, 1)
    rows, keys = map(list, zip(*pieces, strict=True))
    if takes_packed(q):
        if cu_seqlens is None:
            cu_seqlens = cumulative_lengths(pieces, device=q.device)
            assert cu_seqlens is not None, "the samples differ"
        return packed_causal_attention(
            q, k, v, cu_seqlens, most_rows=max(rows), most_keys=max(keys)
        )
    samples = zip(q.split(rows), k.split(keys), v.split(keys), strict=True)
    return torch.cat([causal_attention(*(x[None] for x in one))[0] for one in samples])
