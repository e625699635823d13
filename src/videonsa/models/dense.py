"""Dense causal attention of a step: by PyTorch's fused attention, part by part where padded."""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

from videonsa.ops.text_rows import dense_rows


class LowerRightBias(CausalBias):
    """The last T rows are causal among S keys: `causal_lower_right(T, S)` without its memory.

    PyTorch's function hands T and S on to the tensor's constructor too, which allocates
    2 * T * S float32 that nobody reads.
    """

    def __new__(cls, num_rows: int, num_keys: int) -> Self:
        """A tensor without entries."""
        return torch.empty(0).as_subclass(cls)

    def __init__(self, num_rows: int, num_keys: int) -> None:
        super().__init__(CausalVariant.LOWER_RIGHT, num_rows, num_keys)


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    pieces: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Causal GQA of the last T rows over all S keys.

    Without padding no mask of T * S entries is made on a GPU in float16 or bfloat16: where T < S
    PyTorch's FlashAttention knows which corner of the scores is causal. A CPU makes one. With
    padding rows go part by part with a mask of bounded size (`dense_rows`).

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        key_mask: bool `[B, S]`, False where padded; None where nothing is. A row that sees no key
            gets 0.
        pieces: rows and keys of each packed sample; its rows are the last of its keys, and see no
            others. B = 1, no `key_mask`.

    Returns:
        `[B, T, HQ, D]`.
    """
    if pieces is not None:
        rows, keys = map(list, zip(*pieces, strict=True))
        samples = zip(q.split(rows, 1), k.split(keys, 1), v.split(keys, 1), strict=True)
        return torch.cat([dense_attention(*one) for one in samples], dim=1)
    num_rows, num_keys = q.shape[1], k.shape[1]
    if key_mask is None:
        mask = LowerRightBias(num_rows, num_keys) if num_rows > 1 else None
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True
        )
        return out.transpose(1, 2)
    positions = torch.arange(num_keys - num_rows, num_keys, device=k.device).expand(len(q), -1)
    return dense_rows(q, k, v, positions=positions, key_mask=key_mask)
