"""A selection by chance, the control of one by scores: as many blocks, spread over the stream."""

import torch
from torch import Tensor

from videonsa.ops.spec import NSASpec

_32_BITS = 2**32 - 1


def random_blocks(
    current: Tensor, rows: Tensor, *, num_kv_heads: int, spec: NSASpec, layer: int
) -> Tensor:
    """The blocks that every row selects where `spec.selection` is "random".

    The blocks that a selection by scores always takes are taken here too. Those between them are
    cut into as many strata as there are places left, as equal as can be, and each stratum gives one
    block; all are taken where they are not more than the places. The draw is a hash of the row's
    position, KV head, stratum and layer: the same in every call, however the rows are cut into
    chunks, and in every sample. With `selection_scope="block"` the rows of a block share it.

    Args:
        current: int `[..., T]`, the block of each row among those of its sample.
        rows: int, broadcasts to `[..., T]`: the position of each in its stream.
        num_kv_heads: H.
        spec: n, init and local blocks, and the scope.
        layer: number of the layer; each draws anew.

    Returns:
        int32 `[..., T, H, n]`, ascending, then -1.
    """
    current = current.long()
    seed = current if spec.selection_scope == "block" else rows.long().expand_as(current)
    head = torch.arange(num_kv_heads, device=current.device)
    slot = torch.arange(spec.num_selected_blocks, device=current.device)
    own = _mixed(_mixed(seed[..., None] + (layer + 1) * 0x9E3779B1) + head)[..., None]
    drawn = _mixed(own + slot * 0x85EBCA6B)  # [..., T, H, n]
    current = current[..., None, None]
    first = current.clamp(max=spec.num_init_blocks)  # so many init blocks are taken
    last = (current - spec.num_local_blocks).maximum(first)  # from here on all are taken
    between = last - first
    places = spec.num_selected_blocks - spec.num_init_blocks - spec.num_local_blocks - 1
    strata = between.clamp(max=places)
    stratum = slot - first  # negative: an init block
    begin, end = (first + x * between // strata.clamp(min=1) for x in (stratum, stratum + 1))
    chosen = begin + (drawn * (end - begin).clamp(min=0) >> 32)
    behind = last + stratum - strata  # local blocks, then the row's own
    block = torch.where(stratum < 0, slot, torch.where(stratum < strata, chosen, behind))
    return block.masked_fill(behind.expand_as(block) > current, -1).int()


def _mixed(x: Tensor) -> Tensor:
    """A hash of each int64, from 0 to 2^32 - 1 (the last steps of MurmurHash3)."""
    x = x & _32_BITS
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _32_BITS
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _32_BITS
    return x ^ (x >> 16)
