"""On a GPU the estimators choose the same blocks and never wait for the device."""

import pytest
import torch

from videonsa.ops.estimators.flexprefill import flexprefill_lists
from videonsa.ops.estimators.tri_shape import tri_shape_lists
from videonsa.ops.estimators.xattention import xattention_lists

pytestmark = pytest.mark.gpu
ESTIMATORS = (flexprefill_lists, xattention_lists)


def inputs(num_tokens, *, heads=14, kv_heads=2):
    """Bfloat16 on the GPU; keys of 50 neighbours are alike, so that densities are not near 1."""
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*size):
        return torch.randn(*size, generator=generator, device="cuda")

    common = drawn(num_tokens // 50 + 1, kv_heads, 128).repeat_interleave(50, 0)[:num_tokens]
    k = common + 0.3 * drawn(num_tokens, kv_heads, 128)
    q = drawn(num_tokens, heads, 128)
    q[: num_tokens // 2] += k[: num_tokens // 2].repeat_interleave(heads // kv_heads, 1)
    return q.bfloat16(), k.bfloat16()


def as_map(lists):
    """Bool `[HQ, R, R]`."""
    blocks = lists.num_query_tiles
    counts = lists.num_tiles().flatten().cpu()
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    mask = torch.zeros(lists.num_heads * blocks, blocks, dtype=torch.bool)
    mask[rows, lists.tiles[: len(rows)].long().cpu() // lists.key_tile] = True
    return mask.view(-1, blocks, blocks)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("num_tokens", [4096, 5000])
def test_blocks_are_those_of_the_cpu(estimator, num_tokens):
    """But for a few near ties: sums are taken in another order."""
    q, k = inputs(num_tokens)
    found, wanted = as_map(estimator(q, k)), as_map(estimator(q.cpu(), k.cpu()))
    assert wanted.sum() < 0.97 * wanted.shape[0] * wanted.shape[1] * (wanted.shape[1] + 1) / 2
    assert (found != wanted).sum() <= 0.005 * wanted.sum()


def tri_shape(q, k):
    numbers = {"num_init": 128, "window": 900, "num_last": 100}
    return tri_shape_lists(len(q), q.shape[1], **numbers, device=q.device)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, tri_shape])
def test_the_host_never_waits_for_the_device(estimator):
    q, k = inputs(5000)
    estimator(q, k)
    torch.cuda.set_sync_debug_mode("error")
    try:
        estimator(q, k)
    finally:
        torch.cuda.set_sync_debug_mode("default")
