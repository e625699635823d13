"""Text rows over parts of the keys against the reference."""

import pytest
import torch
from kernel_cases import KERNEL_DTYPE

from videonsa.ops.reference import dense_reference
from videonsa.ops.text_rows import dense_rows
from videonsa.ops.triton import dense


def make(device, *, rows=5, keys=70, group=7, batch=1, dim=16):
    generator = torch.Generator().manual_seed(0)

    def normal(length, heads):
        x = torch.randn(batch, length, heads, dim, generator=generator)
        return x.to(device, KERNEL_DTYPE)

    positions = torch.rand(batch, keys, generator=generator).argsort(1)[:, :rows].sort(1).values
    positions[:, 0], positions[:, -1] = 0, keys - 1
    q, k, v = normal(rows, 2 * group), normal(keys, 2), normal(keys, 2)
    return q, k, v, positions.to(device)


@pytest.mark.parametrize("keys_of_part", [16, 33, 1024], ids=["small", "uneven", "one"])
@pytest.mark.parametrize(("batch", "rows"), [(1, 5), (2, 40)])
def test_rows_equal_the_reference_in_parts_of_any_size(
    batch, rows, keys_of_part, device, monkeypatch
):
    monkeypatch.setattr(dense, "KEYS_OF_PART", keys_of_part)
    monkeypatch.setattr(dense, "PROGRAMS_EACH", 1000)
    q, k, v, positions = make(device, rows=rows, batch=batch)
    found = dense.dense_rows_in_parts(q, k, v, positions)
    wanted = dense_reference(q, k, v, positions=positions)
    noise = 8 * torch.finfo(KERNEL_DTYPE).eps
    torch.testing.assert_close(found, wanted, rtol=noise, atol=noise)


def test_keys_of_a_cache_have_other_strides(device):
    q, k, v, positions = make(device)
    spread = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    found = dense.dense_rows_in_parts(q, *spread, positions)
    assert torch.equal(found, dense.dense_rows_in_parts(q, k, v, positions))


@pytest.mark.parametrize("what", ["gradient", "padding"])
def test_gradients_and_padding_go_another_way(what, device, monkeypatch):
    def never(*_):
        raise AssertionError("the kernel has neither")

    monkeypatch.setattr(dense, "dense_rows_in_parts", never)
    q, k, v, positions = make(device)
    with pytest.raises(AssertionError):
        dense_rows(q, k, v, positions=positions)
    mask = torch.ones(k.shape[:2], dtype=torch.bool, device=device)
    q.requires_grad_(what == "gradient")
    dense_rows(q, k, v, positions=positions, key_mask=None if what == "gradient" else mask)
