"""The block-sparse kernel against its reference: tiles at any offset, columns, any head dim."""

import pytest
import torch
from block_list_cases import on, random_lists
from kernel_cases import KERNEL_DTYPE

from videonsa.ops.block_lists import Trim
from videonsa.ops.block_sparse import BlockLists, block_sparse_attention
from videonsa.ops.block_sparse_reference import block_sparse_reference
from videonsa.ops.triton.block_sparse import block_sparse_triton
from videonsa.ops.triton.sparse_tuning import SparseConfig

CONFIG = SparseConfig(64, 4, 1)


def make(device, num_tokens, *, group=1, kv_heads=1, dim=16, dtype=KERNEL_DTYPE):
    generator = torch.Generator().manual_seed(0)
    heads = (group * kv_heads, kv_heads, kv_heads)
    inputs = [torch.randn(num_tokens, n, dim, generator=generator) for n in heads]
    return [x.to(device, dtype) for x in inputs]


def assert_equal_to_reference(inputs, lists, *, trim=None, config=CONFIG, scale=0.3):
    found = block_sparse_triton(*inputs, lists, trim=trim, scale=scale, config=config)
    wanted = block_sparse_reference(*inputs, lists, trim=trim, scale=scale)
    noise = 8 * torch.finfo(inputs[0].dtype).eps
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=noise, atol=noise)
    return found


@pytest.mark.parametrize(
    ("query_tile", "key_tile", "block_n", "columns"),
    [(64, 64, 64, 0), (64, 64, 64, 70), (128, 64, 32, 40), (64, 128, 64, 5)],
)
def test_tiles_at_any_offset_and_columns(query_tile, key_tile, block_n, columns, device):
    sizes = {"query_tile": query_tile, "key_tile": key_tile, "columns": columns}
    lists = on(device, random_lists(230, heads=1, room=2, **sizes))
    config = CONFIG._replace(block_n=block_n, column_n=32)
    assert_equal_to_reference(make(device, 230), lists, config=config)


@pytest.mark.parametrize("num_tokens", [1, 64])
def test_samples_of_a_tile_or_less(num_tokens, device):
    lists = on(device, random_lists(num_tokens, heads=1, columns=1))
    assert_equal_to_reference(make(device, num_tokens), lists)


def test_query_heads_have_lists_and_columns_of_their_own(device):
    lists = on(device, random_lists(90, heads=6, columns=9))
    assert_equal_to_reference(make(device, 90, group=3, kv_heads=2), lists)


@pytest.mark.parametrize("dim", [48, 256])
def test_head_dims(dim, device):
    lists = on(device, random_lists(70, heads=1, columns=5))
    assert_equal_to_reference(make(device, 70, dim=dim), lists, scale=1 / dim)


@pytest.mark.parametrize("trim", [Trim(5, 90, 0), Trim(70, 64, 30)])
def test_a_window_trims_whole_tiles_and_those_on_the_diagonal(trim, device):
    lists = on(device, random_lists(270, heads=1, density=0.9, columns=9))
    assert_equal_to_reference(make(device, 270), lists, trim=trim)


def test_rows_without_tiles_have_their_columns_or_nothing(device):
    def ints(*values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    starts = ints(0, 0, 0, 0, 0)
    lists = BlockLists(
        query_tile=64,
        key_tile=64,
        row_starts=torch.stack([starts, starts]),
        tiles=ints(),
        columns=ints(70, 100, 199),
        column_starts=ints(0, 3, 3),
    )
    out, lse = assert_equal_to_reference(make(device, 200, group=2), lists)
    assert (lse[:70] == -torch.inf).all() and not out[:70].any()
    assert lse[70:, 0].isfinite().all() and (lse[:, 1] == -torch.inf).all()


def test_memory_with_other_strides(device):
    lists = on(device, random_lists(90, heads=2, columns=3))
    inputs = make(device, 90, group=1, kv_heads=2)
    wanted = assert_equal_to_reference(inputs, lists)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    dims_first = [x.mT.contiguous().mT for x in inputs]
    for same in (heads_first, dims_first):
        for x, y in zip(assert_equal_to_reference(same, lists), wanted, strict=True):
            assert torch.equal(x, y)


def test_the_public_op_takes_the_kernel_where_it_is_asked_to(device, monkeypatch):
    lists = on(device, random_lists(70, heads=1))
    inputs = make(device, 70)
    monkeypatch.setattr("videonsa.ops.block_sparse.block_sparse_reference", None)
    out, lse = block_sparse_attention(*inputs, lists, backend="triton", return_lse=True)
    monkeypatch.undo()
    wanted = block_sparse_attention(*inputs, lists, backend="reference", return_lse=True)
    noise = 8 * torch.finfo(KERNEL_DTYPE).eps
    torch.testing.assert_close((out, lse), wanted, rtol=noise, atol=noise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 24}, "the head dim is 24, the kernels take multiples of 16 up to 256"),
        ({"dim": 272}, "the head dim is 272"),
        ({"grad": True}, "gradients are wanted"),
    ],
)
def test_what_the_kernel_cannot_take_is_told(change, message, device):
    lists = on(device, random_lists(70, heads=1))
    q, k, v = make(device, 70, dim=change.get("dim", 16))
    q.requires_grad_(change.get("grad", False))
    with pytest.raises(ValueError, match=f"backend='triton': {message}") as caught:
        block_sparse_attention(q, k, v, lists, backend="triton")
    assert "\n" not in str(caught.value)
    block_sparse_attention(q, k, v, lists)  # "auto" takes the reference
