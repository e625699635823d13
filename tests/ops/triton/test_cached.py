"""Splits of a cache against the reference: tiles of rows, empty splits, borders, any memory."""

import pytest
import torch

from videonsa.ops.cached_attention import SharedKeys, _reference
from videonsa.ops.triton import cached
from videonsa.ops.triton.cached import cached_attention_triton
from videonsa.ops.triton.decode_tuning import CachedTuning
from videonsa.ops.triton.tuning import Config

MEMORY, SHARED, DIM = 70, 50, 16


@pytest.fixture(autouse=True)
def one_multiprocessor(monkeypatch):
    """So that `programs` says how many programs there are."""
    monkeypatch.setattr(cached, "num_multiprocessors", lambda device: 1)


def tuning(programs, *, block_m=16):
    return CachedTuning(Config(block_m, 16, 4, 1, programs=programs), 2, 16, 4)


def make(device, *, num=1, rows=1, group=2, kv_heads=1, dim=DIM, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    q = normal(num, rows, group * kv_heads, dim)
    k, v = (normal(num, MEMORY, kv_heads, dim) for _ in range(2))
    return q, k, v, [normal(1, SHARED, kv_heads, dim) for _ in range(2)]


def lengths(device, *values):
    return torch.tensor(values, dtype=torch.int32, device=device)


def assert_equal_to_reference(q, k, v, starts, shared=None, *, programs=(3, 3), block_m=16):
    tunings = tuple(tuning(n, block_m=block_m) for n in programs)
    found = cached_attention_triton(q, k, v, starts, shared, tunings=tunings)
    wanted = _reference(q, k, v, starts, None if shared is None else SharedKeys(*shared))
    noise = 8 * torch.finfo(q.dtype).eps
    torch.testing.assert_close(found, wanted, rtol=noise, atol=noise)
    return found


@pytest.mark.parametrize("programs", [1, 3, 8], ids=["one split", "several", "some without keys"])
@pytest.mark.parametrize("start", [0, 15, 16, MEMORY - 1])
def test_one_row_sees_what_the_device_says(start, programs, device):
    q, k, v, _ = make(device)
    assert_equal_to_reference(q, k, v, lengths(device, start), programs=(programs, 0))


@pytest.mark.parametrize("start", [11, MEMORY - 5])
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 2), (7, 1)], ids=["one tile", "three tiles"])
def test_rows_are_causal_among_themselves(group, kv_heads, start, device):
    q, k, v, _ = make(device, rows=5, group=group, kv_heads=kv_heads)
    assert_equal_to_reference(q, k, v, lengths(device, start), programs=(12, 0))


@pytest.mark.parametrize("length", [0, 32, SHARED])
@pytest.mark.parametrize("rows", [1, 2])
def test_samples_share_a_prefix_as_rows_of_one_tile(rows, length, device):
    q, k, v, prefix = make(device, num=3, rows=rows, group=3)
    starts = lengths(device, 0, 20, MEMORY - rows)
    shared = (*prefix, lengths(device, length))
    assert_equal_to_reference(q, k, v, starts, shared, programs=(6, 4))


@pytest.mark.parametrize("dim", [48, 64])
def test_head_dims_and_half_precision(dim, device):
    q, k, v, _ = make(device, rows=2, dim=dim, dtype=torch.float16)
    assert_equal_to_reference(q, k, v, lengths(device, 30), block_m=32)


def test_memory_may_lie_heads_first_and_have_room_behind(device):
    q, k, v, prefix = make(device, num=2, kv_heads=2)
    starts, length = lengths(device, 3, 40), lengths(device, 33)
    wanted = assert_equal_to_reference(q, k, v, starts, (*prefix, length))
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v, *prefix)]
    roomy = [torch.cat([x, torch.full_like(x, torch.nan)], 1)[:, : x.shape[1]] for x in (k, v)]
    for k, v, *shared in (heads_first, (*roomy, *prefix)):
        assert torch.equal(assert_equal_to_reference(q, k, v, starts, (*shared, length)), wanted)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, of inf times 0
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_keep_their_bits_whatever_lies_behind_what_they_see(value, device):
    q, k, v, prefix = make(device, rows=3)
    starts, length = lengths(device, 18), lengths(device, 33)
    how = {"tunings": (tuning(3), tuning(3))}
    wanted = cached_attention_triton(q, k, v, starts, (*prefix, length), **how)
    k[:, 20:], v[:, 20:] = value, -value
    for x in prefix:
        x[:, 33:] = value
    found = cached_attention_triton(q, k, v, starts, (*prefix, length), **how)
    assert torch.equal(found[:, :2], wanted[:, :2])
    assert found[:, 2].isnan().all()
