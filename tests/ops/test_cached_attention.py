"""New rows over a cache against the softmax written out."""

import pytest
import torch

from videonsa.ops.cached_attention import cached_attention

MEMORY = 23
SHARED = 11


def make(*, num=2, rows=3, group=2, kv_heads=2, dim=64, memory=MEMORY, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    q = normal(num, rows, group * kv_heads, dim)
    k, v = normal(num, memory, kv_heads, dim), normal(num, memory, kv_heads, dim)
    shared = normal(1, SHARED, kv_heads, dim), normal(1, SHARED, kv_heads, dim)
    return q, k, v, shared


def lengths(*values):
    return torch.tensor(values, dtype=torch.int32)


def written_out(q, k, v, starts, shared=None):
    """One row, one head at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[2] // k.shape[2]
    out = torch.empty_like(q)
    for i, start in enumerate(starts.tolist()):
        for t in range(q.shape[1]):
            keys, values = k[i, : start + t + 1], v[i, : start + t + 1]
            if shared is not None:
                length = int(shared[2])
                keys = torch.cat([shared[0][0, :length].double(), keys])
                values = torch.cat([shared[1][0, :length].double(), values])
            for head in range(q.shape[2]):
                scores = keys[:, head // group] @ q[i, t, head] / q.shape[3] ** 0.5
                out[i, t, head] = scores.softmax(0) @ values[:, head // group]
    return out


def starts_of(num, rows):
    """Empty, full, and between."""
    return lengths(*[0, MEMORY - rows, 7, 1][:num])


@pytest.mark.parametrize("length", [None, 0, 5, SHARED])
@pytest.mark.parametrize(("num", "rows"), [(1, 1), (1, 5), (2, 2), (3, 4), (4, 1)])
@pytest.mark.parametrize("group", [1, 2, 4, 7])
@pytest.mark.parametrize("dim", [64, 128])
def test_rows_are_those_of_the_softmax_written_out(dim, group, num, rows, length):
    q, k, v, prefix = make(num=num, rows=rows, group=group, dim=dim)
    starts = starts_of(num, rows)
    shared = None if length is None else (*prefix, lengths(length))
    found = cached_attention(q, k, v, starts, shared=shared)
    wanted = written_out(q, k, v, starts, shared)
    torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("start", [0, 9, MEMORY - 3])
def test_one_sample_may_start_anywhere(start):
    q, k, v, _ = make(num=1)
    found = cached_attention(q, k, v, lengths(start))
    wanted = written_out(q, k, v, lengths(start))
    torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=1e-5)


def test_memory_of_heads_first_gives_the_same():
    q, k, v, prefix = make()
    starts = starts_of(2, 3)
    wanted = cached_attention(q, k, v, starts, shared=(*prefix, lengths(6)))
    k, v, *prefix = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v, *prefix))
    found = cached_attention(q, k, v, starts, shared=(*prefix, lengths(6)))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e4])
def test_rows_keep_their_bits_whatever_lies_behind_what_they_see(value):
    q, k, v, prefix = make()
    starts = starts_of(2, 3) - lengths(0, 4)
    wanted = cached_attention(q, k, v, starts, shared=(*prefix, lengths(6)))
    for i, start in enumerate(starts.tolist()):
        k[i, start + 2 :], v[i, start + 2 :] = value, -value
    for x in prefix:
        x[:, 6:] = value
    found = cached_attention(q, k, v, starts, shared=(*prefix, lengths(6)))
    assert torch.equal(found[:, :2], wanted[:, :2])
    assert not torch.equal(found[:, 2:], wanted[:, 2:])


def test_float64_stays_float64():
    q, k, v, _ = make(dtype=torch.float64)
    found = cached_attention(q, k, v, starts_of(2, 3))
    torch.testing.assert_close(found, written_out(q, k, v, starts_of(2, 3)), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_queries_and_is_rounded_once(dtype):
    q, k, v, _ = make(dtype=dtype)
    starts = starts_of(2, 3)
    found = cached_attention(q, k, v, starts)
    assert found.dtype == dtype
    wanted = written_out(q, k, v, starts)
    noise = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, atol=noise, rtol=noise)


def test_a_prefix_is_what_every_sample_would_hold_before_its_own():
    q, k, v, prefix = make(num=3, rows=2)
    starts = starts_of(3, 2)
    found = cached_attention(q, k, v, starts, shared=(*prefix, lengths(SHARED)))
    k, v = (
        torch.cat([x.expand(3, -1, -1, -1), own], 1) for x, own in zip(prefix, (k, v), strict=True)
    )
    wanted = cached_attention(q, k, v, starts + SHARED)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 4)}, r"q, k, v are \[2, 3, 4\]"),
        ({"v": torch.zeros(2, MEMORY, 2, 32)}, "twice"),
        ({"q": torch.zeros(1, 3, 4, 64)}, "the same N and D"),
        ({"q": torch.zeros(2, MEMORY + 1, 4, 64)}, "room for the T new keys"),
        ({"q": torch.zeros(2, 3, 5, 64)}, "a multiple of the KV heads"),
        ({"q": torch.zeros(2, 3, 4, 64).half()}, "torch.float16 on cpu, torch.float32 on cpu"),
        ({"starts": torch.zeros(2, dtype=torch.int64)}, r"starts is torch.int64 \[2\]"),
        ({"starts": lengths(0)}, r"want int32 \[2\]"),
        ({"length": lengths(0, 0)}, r"the shared length is torch.int32 \[2\]"),
        ({"shared_k": torch.zeros(2, SHARED, 2, 64)}, r"want \[1, P, H, D\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    q, k, v, (shared_k, shared_v) = make()
    given = {"q": q, "k": k, "v": v, "starts": lengths(0, 1)} | {
        "shared_k": shared_k,
        "shared_v": shared_v,
        "length": lengths(1),
    }
    given |= change
    shared = tuple(given.pop(name) for name in ("shared_k", "shared_v", "length"))
    with pytest.raises(ValueError, match=message) as caught:
        cached_attention(**given, shared=shared)
    assert "\n" not in str(caught.value)
