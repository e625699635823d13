"""Dense attention without a mask of rows and keys equals the masked form, gradients too."""

import pytest
import torch
import torch.nn.functional as F
from allocations import allocations
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from videonsa.models.dense import cumulative_lengths, dense_attention
from videonsa.ops import text_rows
from videonsa.ops.lower_right import LowerRightBias

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 16


def tensors(num_rows, num_keys, *, batch=1, like=None):
    torch.manual_seed(0)
    shapes = ((num_rows, HEADS), (num_keys, KV_HEADS), (num_keys, KV_HEADS))
    options = like or {}
    return [
        torch.randn(batch, length, heads, HEAD_DIM, **options).requires_grad_()
        for length, heads in shapes
    ]


def masked(q, k, v, sees):
    """By a bool mask `[B or 1, 1, T, S]`."""
    out = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=sees, enable_gqa=True
    )
    return out.transpose(1, 2)


def lower_right(num_rows, num_keys, device=None):
    sees = torch.ones(num_rows, num_keys, dtype=torch.bool, device=device)
    return sees.tril(num_keys - num_rows)


def assert_equal_with_gradients(found, wanted, inputs, **tolerance):
    torch.testing.assert_close(found, wanted, **tolerance)
    weight = torch.linspace(-1, 1, found.numel(), device=found.device).view_as(found)
    grads = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, wanted)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize(("num_rows", "num_keys"), [(1, 7), (9, 9), (5, 12), (11, 12)])
def test_the_last_rows_see_all_keys_up_to_their_own(num_rows, num_keys):
    inputs = tensors(num_rows, num_keys)
    wanted = masked(*inputs, lower_right(num_rows, num_keys))
    assert_equal_with_gradients(dense_attention(*inputs), wanted, inputs)


@pytest.mark.parametrize(
    "pieces",
    [[(3, 3), (4, 9), (1, 5)], [(4, 4)] * 3, [(2, 5)] * 3],
    ids=["of all lengths", "equal and whole", "equal"],
)
def test_pieces_see_their_own_keys_only(pieces):
    inputs = tensors(*map(sum, zip(*pieces, strict=True)))
    wanted = masked(*inputs, torch.block_diag(*(lower_right(*piece) for piece in pieces)).bool())
    assert_equal_with_gradients(dense_attention(*inputs, pieces=pieces), wanted, inputs)


@pytest.mark.parametrize("elements", [2**27, 40, 1])
def test_padded_keys_are_seen_by_no_row(elements, monkeypatch):
    """However few rows go at a time."""
    monkeypatch.setattr(text_rows, "MASK_ELEMENTS", elements)
    inputs, key_mask = tensors(4, 9, batch=2), torch.ones(2, 9, dtype=torch.bool)
    key_mask[1, :3] = False
    wanted = masked(*inputs, lower_right(4, 9) & key_mask[:, None, None])
    assert_equal_with_gradients(dense_attention(*inputs, key_mask=key_mask), wanted, inputs)


def test_gradients_survive_autocast_and_checkpointing():
    inputs = tensors(5, 12)
    low = [x.bfloat16() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        found = checkpoint(dense_attention, *low, use_reentrant=False)
    assert found.dtype == torch.bfloat16
    wanted = masked(*low, lower_right(5, 12))
    assert_equal_with_gradients(found, wanted, inputs, rtol=0.02, atol=0.02)


class Seen(TorchFunctionMode):
    """Keeps the masks that fused attention is given."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.masks.append(kwargs["attn_mask"])
        return func(*args, **(kwargs or {}))


def test_fused_attention_is_told_the_corner_and_given_no_mask():
    with Seen() as seen:
        dense_attention(*tensors(9, 17), pieces=[(3, 3), (5, 9), (1, 5)])
    *corners, none = seen.masks
    assert none is None
    assert all(isinstance(corner, LowerRightBias) and not corner.numel() for corner in corners)
    assert [(corner.seq_len_q, corner.seq_len_kv) for corner in corners] == [(3, 3), (5, 9)]


@pytest.mark.parametrize(("rows", "keys"), [(4, 4), (2, 5)])
def test_pieces_of_equal_lengths_are_one_call_and_need_no_lengths(rows, keys):
    pieces = [(rows, keys)] * 3
    with Seen() as seen:
        dense_attention(*tensors(3 * rows, 3 * keys), pieces=pieces)
    (corner,) = seen.masks
    assert (corner.seq_len_q, corner.seq_len_kv) == (rows, keys)
    assert cumulative_lengths(pieces, device=torch.device("cpu")) is None


def test_nothing_but_the_output_is_allocated_at_long_lengths():
    with FakeTensorMode():
        inputs = [torch.empty(1, n, h, 128) for n, h in ((2**16, 28), (2**18, 4), (2**18, 4))]
    with allocations() as counted:
        out = dense_attention(*inputs)
    assert counted.peak == out.nbytes


@pytest.mark.gpu
def test_a_gpu_needs_no_memory_for_rows_times_keys():
    inputs = tensors(4096, 16384, like={"device": "cuda", "dtype": torch.bfloat16})
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = dense_attention(*inputs)
    assert torch.cuda.max_memory_allocated() - before < 4096 * 16384
    wanted = masked(*inputs, lower_right(4096, 16384, "cuda"))
    assert_equal_with_gradients(found, wanted, inputs, rtol=0.02, atol=0.02)


PIECES = [(300, 300), (1, 70), (64, 513), (129, 129)]


def packed_on_gpu():
    rows, keys = map(sum, zip(*PIECES, strict=True))
    return tensors(rows, keys, like={"device": "cuda", "dtype": torch.bfloat16})


@pytest.mark.gpu
def test_pieces_of_other_lengths_are_one_call_on_a_gpu():
    inputs = packed_on_gpu()
    with Seen() as seen:
        found = dense_attention(*inputs, pieces=PIECES)
    assert not seen.masks
    wanted = masked(*inputs, torch.block_diag(*(lower_right(*x) for x in PIECES)).bool().cuda())
    assert_equal_with_gradients(found, wanted, inputs, rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.gpu
@pytest.mark.parametrize("pieces", [PIECES, [(100, 100)] * 4, [(30, 100)] * 4])
def test_packed_attention_and_its_gradients_never_wait_for_the_gpu(pieces):
    rows, keys = map(sum, zip(*pieces, strict=True))
    inputs = tensors(rows, keys, like={"device": "cuda", "dtype": torch.bfloat16})
    lengths = cumulative_lengths(pieces, device=torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        dense_attention(*inputs, pieces=pieces, cu_seqlens=lengths).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert inputs[0].grad.isfinite().all()


@pytest.mark.gpu
def test_what_is_not_finite_in_one_piece_reaches_no_other_on_a_gpu():
    """Neither its output nor a gradient; the pieces end inside of tiles."""
    inputs = packed_on_gpu()
    rows, keys = ([x[i] for x in PIECES] for i in (0, 1))
    with torch.no_grad():
        for x, lengths in zip(inputs, (rows, keys, keys), strict=True):
            x.split(lengths, 1)[2].fill_(torch.nan)
    found = dense_attention(*inputs, pieces=PIECES)
    outputs = found.split(rows, 1)
    grads = torch.autograd.grad(sum(outputs[i].sum() for i in (0, 1, 3)), inputs)
    for x, lengths in zip((found, *grads), (rows, rows, keys, keys), strict=True):
        assert all(x.split(lengths, 1)[i].isfinite().all() for i in (0, 1, 3))
