"""A few text rows over many keys: parts of the keys side by side, merged by their LSE.

One tile of rows with 28 heads would keep 28 of a GPU's multiprocessors busy with all the keys.
"""

import torch
import triton
from torch import Tensor

from videonsa.ops.triton.common import Keys, on_device
from videonsa.ops.triton.compressed import compressed
from videonsa.ops.triton.forward import num_multiprocessors
from videonsa.ops.triton.index import Tiles
from videonsa.ops.triton.pool import with_poison
from videonsa.ops.triton.tuning import Tuning, tuning_for

PROGRAMS_EACH = 4
"""Programs that a multiprocessor should get: two run at a time, and their lengths differ."""
KEYS_OF_PART = 1024
"""At least; shorter parts are not worth their merging."""
BLOCK_SIZE = 64
"""Of the tuning that serves: any would."""


def dense_rows_in_parts(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, *, tuning: Tuning | None = None
) -> Tensor:
    """Causal attention of single rows over all keys, without gradients.

    Args:
        q: `[B, T, HQ, D]`, float16 or bfloat16.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        positions: `[B, T]` int, ascending: the key position of each row, which sees the keys up to
            itself.
        tuning: of the kernels. Default: as measured for the device.

    Returns:
        `[B, T, HQ, D]`.
    """
    tuning = tuning or tuning_for(BLOCK_SIZE, device=q.device)
    num_samples, num_rows, num_heads, _ = q.shape
    num_keys = k.shape[1]
    tiles = num_samples * triton.cdiv(num_rows, tuning.compressed.block_m)
    wanted = triton.cdiv(PROGRAMS_EACH * num_multiprocessors(q.device), tiles * num_heads)
    num_parts = max(1, min(wanted, num_keys // KEYS_OF_PART))
    size = triton.cdiv(num_keys, num_parts)
    # Each part is a sample of its own for the kernel, with the same rows.
    part = torch.arange(num_parts, device=q.device)[:, None, None] * size
    sample = torch.arange(num_samples, device=q.device)[:, None] * num_keys
    begin = (part + sample).expand(-1, -1, num_rows)
    end = torch.minimum(begin + size, sample + positions + 1).maximum(begin)
    k, v = k.flatten(0, 1).contiguous(), v.flatten(0, 1).contiguous()
    with on_device(q):
        keys = Keys(k, v, None, None) if num_rows == 1 else with_poison(k, v)
        outputs, lses = compressed(
            q.flatten(0, 1).repeat(num_parts, 1, 1),
            keys,
            (begin.flatten().int(), end.flatten().int()),
            Tiles(None, num_parts * tiles, tuning.compressed.block_m, num_rows),
            config=tuning.compressed,
        )
    if num_parts == 1:
        return outputs.view_as(q)
    weights = lses.unflatten(0, (num_parts, -1)).softmax(0)  # every row sees a key of the first
    merged = (outputs.unflatten(0, (num_parts, -1)) * weights[..., None]).sum(0)
    result: Tensor = merged.to(q.dtype).view_as(q)
    return result
