"""Dense attention of the last rows: as with a mask of all rows and keys, which is never made."""

import pytest
import torch
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode

from videonsa.models.attention import dense_attention, dense_mask


def make_inputs(num_rows, num_keys, *, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(1, *shape, generator=generator).to(device, dtype).requires_grad_()

    return draw(num_rows, 6, 16), draw(num_keys, 2, 16), draw(num_keys, 2, 16)


@pytest.mark.parametrize(("num_rows", "num_keys"), [(1, 9), (4, 9), (9, 9)])
def test_the_last_rows_see_the_keys_up_to_their_own(num_rows, num_keys):
    inputs = make_inputs(num_rows, num_keys)
    mask = dense_mask(torch.ones(1, num_keys, dtype=torch.bool), num_rows)
    found, wanted = (dense_attention(*inputs, mask=x) for x in (None, mask))
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(x.square().sum(), inputs) for x in (found, wanted)]
    torch.testing.assert_close(*grads)


def test_pieces_see_their_own_keys_alone():
    q, k, v = make_inputs(7, 13)
    found = dense_attention(q, k, v, mask=None, pieces=[(3, 5), (4, 8)])
    first = dense_attention(q[:, :3], k[:, :5], v[:, :5], mask=None)
    second = dense_attention(q[:, 3:], k[:, 5:], v[:, 5:], mask=None)
    assert torch.equal(found, torch.cat([first, second], dim=1))


class Masks(TorchFunctionMode):
    """What was given to fused attention as a mask."""

    def __init__(self):
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append(kwargs["attn_mask"])
        return func(*args, **(kwargs or {}))


def test_no_mask_is_made_where_nothing_is_padded():
    assert dense_mask(None, 4) is None
    for num_rows, kind in ((1, type(None)), (4, CausalBias), (9, type(None))):
        with Masks() as masks:
            dense_attention(*make_inputs(num_rows, 9), mask=None)
        assert type(masks.seen[0]) is kind


@pytest.mark.gpu
def test_memory_on_a_gpu_is_that_of_rows_and_keys():
    num_rows, num_keys = 2**11, 2**16
    inputs = make_inputs(num_rows, num_keys, device="cuda", dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    dense_attention(*inputs, mask=None).sum().backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < num_rows * num_keys  # bytes of a mask
