"""The kernels of a decode step with real dtypes and sizes, and in a CUDA graph."""

import pytest
import torch
import torch.nn.functional as F

from videonsa.ops import few_rows
from videonsa.ops.cached_attention import SharedKeys, _reference, cached_attention

pytestmark = pytest.mark.gpu

BF16 = torch.bfloat16


def normal(*shape, dtype=BF16):
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)


def lengths(*values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def assert_close(found, wanted, dtype):
    error = (found.double() - wanted.double()).norm() / wanted.double().norm()
    assert error < max(2 * torch.finfo(dtype).eps, 2e-6)


@pytest.mark.parametrize(
    ("group", "dim", "dtype"),
    [
        (7, 128, BF16),
        (8, 128, torch.float16),
        (7, 128, torch.float32),
        (1, 64, BF16),
        (3, 80, BF16),
        (2, 256, BF16),
    ],
)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_rows_over_a_cache_are_those_of_the_reference(rows, group, dim, dtype):
    q = normal(2, rows, 2 * group, dim, dtype=dtype)
    k, v = (normal(2, 3000, 2, dim, dtype=dtype) for _ in range(2))
    prefix = [normal(1, 5000, 2, dim, dtype=dtype) for _ in range(2)]
    starts = lengths(0, 2900)
    for length in (0, 1, 4999):
        shared = SharedKeys(*prefix, lengths(length))
        found = cached_attention(q, k, v, starts, shared=shared)
        assert_close(found, _reference(q, k, v, starts, shared), dtype)
        assert torch.equal(found, cached_attention(q, k, v, starts, shared=shared))
    assert_close(cached_attention(q, k, v, starts), _reference(q, k, v, starts, None), dtype)


def test_one_graph_serves_every_length():
    q = normal(1, 2, 28, 128)
    k, v = normal(1, 9000, 4, 128), normal(1, 9000, 4, 128)
    starts = lengths(0)
    cached_attention(q, k, v, starts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cached_attention(q, k, v, starts)
    for start in (0, 1, 62, 63, 64, 1000, 8998):
        starts.fill_(start)
        graph.replay()
        assert_close(out, _reference(q, k, v, starts, None), BF16)


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("size", [3584, 2048, 72])
@pytest.mark.parametrize("num_rows", [1, 2, 16])
def test_products_differ_by_the_order_of_summation_only(num_rows, size, dtype):
    x = normal(num_rows, size, dtype=dtype)
    weights = [(normal(n, size, dtype=dtype) / 64, None) for n in (3584, 512, 100)]
    weights[1] = (weights[1][0], normal(512, dtype=dtype))
    assert few_rows.takes(x, weights)
    for out, weight in zip(few_rows.linear_products(x, weights), weights, strict=True):
        assert_close(
            out, F.linear(x.double(), *(y if y is None else y.double() for y in weight)), dtype
        )
    gate, up = (normal(1000, size, dtype=dtype) / 8 for _ in range(2))
    wanted = F.silu(F.linear(x, gate)) * F.linear(x, up)
    assert_close(few_rows.gated_product(x, gate, up), wanted, dtype)
