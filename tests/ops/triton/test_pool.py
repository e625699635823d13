"""Pooling by the kernel gives the bits of the reference's pooling."""

import pytest
import torch

from videonsa.ops import NSASpec
from videonsa.ops.reference import pool_blocks
from videonsa.ops.triton.index import kernel_index
from videonsa.ops.triton.pool import pool
from videonsa.ops.varlen import block_borders, block_table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("size", "frames"),
    [(7, None), (20, None), (64, None), (128, None), ("frame", [54, 1, 131, 16])],
    ids=lambda x: str(x),
)
def test_complete_blocks_are_pooled_to_the_bits_of_the_reference(size, frames, dtype, device):
    num_keys, generator = 197, torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, num_keys, 1, 48, generator=generator).to(device, dtype) for _ in "kv")
    spec = NSASpec(block_size=size)
    index, _ = kernel_index(k, k, spec=spec, q_offset=None, frame_sizes=frames)
    _, means = pool(k[0], v[0], index)
    blocks = block_table(block_borders(size, frames, [num_keys]), num_keys, device=device)
    for found, x in zip((means.k, means.v), (k, v), strict=True):
        wanted = pool_blocks(x, blocks)[0]
        assert torch.equal(found[: len(wanted)], wanted)
        assert (found[len(wanted) :] == 0).all(), "a block that is not complete is not 0"
