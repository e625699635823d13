"""Causal attention of the last rows of their keys by PyTorch's fused kernels, without a mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.triton.support import DTYPES, LEAST_CAPABILITY

MAX_FLASH_DIM = 256
"""Of a head in PyTorch's FlashAttention, in steps of 8."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal GQA of the last T rows over all S keys.

    On a GPU in float16 or bfloat16 no mask is made: where T < S, PyTorch's FlashAttention knows
    which corner of the scores is causal. A CPU makes one.

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.

    Returns:
        `[B, T, HQ, D]`.
    """
    # Imported where it is used: its base class imports PyTorch's compiler, which takes a second.
    from videonsa.ops.lower_right import LowerRightBias

    num_rows, num_keys = q.shape[1], k.shape[1]
    mask = LowerRightBias(num_rows, num_keys) if num_rows > 1 else None
    q, k, v = (x.transpose(1, 2) for x in autocast(q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def packed_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, most_rows: int, most_keys: int
) -> Tensor:
    """`causal_attention` of packed samples in one call of FlashAttention (see `takes_packed`).

    Args:
        q: `[T, HQ, D]`.
        k: `[S, H, D]`.
        v: `[S, H, D]`.
        cu_seqlens: int32 `[2, N + 1]` on their device: where the rows and the keys of each sample
            begin, and their ends.
        most_rows: of a sample.
        most_keys: of a sample.

    Returns:
        `[T, HQ, D]`.
    """
    out: Tensor = torch.ops.aten._flash_attention_forward(
        *autocast(q, k, v),
        *cu_seqlens,
        most_rows,
        most_keys,
        dropout_p=0.0,
        is_causal=True,  # aligned at the lower right
        return_debug_mask=False,
    )[0]
    return out


def takes_packed(q: Tensor) -> bool:
    """Whether `packed_causal_attention` takes rows like q `[..., D]`: on an NVIDIA GPU in 16 bits.

    Not where the caller turned FlashAttention off (`torch.nn.attention.sdpa_kernel`).
    """
    if not q.is_cuda or torch.version.hip is not None:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q.dtype
    return (
        dtype in DTYPES
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= MAX_FLASH_DIM
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(q.device) >= LEAST_CAPABILITY
    )


def autocast(*inputs: Tensor) -> list[Tensor]:
    """The inputs in the dtype of autocast, where it is on: it does not know all kernels."""
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(inputs)
    return [x.to(torch.get_autocast_dtype(device)) for x in inputs]
