"""Linear products of a few rows: what kernels take, and that PyTorch computes the rest."""

import pytest
import torch
import torch.nn.functional as F

from videonsa.ops import few_rows
from videonsa.ops.scaled import ScaledRows, scale_rows


def make(num_rows=2, *, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return normal(1, num_rows, 32), [(normal(48, 32), normal(48)), (normal(16, 32), None)]


def test_without_a_gpu_pytorch_multiplies():
    x, weights = make()
    assert not few_rows.takes(x, weights)
    found = few_rows.linear_products(x, weights)
    for out, weight in zip(found, weights, strict=True):
        assert torch.equal(out, F.linear(x, *weight))
    gate = weights[0][0]
    wanted = F.silu(F.linear(x, gate)) * F.linear(x, gate)
    assert torch.equal(few_rows.gated_product(x, gate, gate), wanted)


@pytest.fixture
def anywhere(monkeypatch):
    """As if the tensors were on a GPU."""
    monkeypatch.setattr(few_rows, "why_not_few_rows", lambda x: None)


def test_what_kernels_take(anywhere):
    x, weights = make(16)
    assert few_rows.takes(x, weights)
    assert not few_rows.takes(make(17)[0], weights)
    assert not few_rows.takes(x, weights * 2)
    assert not few_rows.takes(x, [(w.float(), None) for w, _ in weights])
    assert not few_rows.takes(x, [(w.t().contiguous().t(), None) for w, _ in weights])


def test_kernels_have_no_gradient(anywhere):
    x, weights = make()
    weights[0][0].requires_grad_()
    assert not few_rows.takes(x, weights)
    with torch.no_grad():
        assert few_rows.takes(x, weights)


def test_weights_in_float8_are_restored_by_pytorch_and_taken_by_gpus_that_have_it(
    anywhere, monkeypatch
):
    x, weights = make()
    scaled = [(scale_rows(w), bias) for w, bias in weights]
    assert not few_rows.takes(x, scaled)
    for out, (w, bias) in zip(few_rows.linear_products(x, scaled), scaled, strict=True):
        restored = (w.values.float() * w.scales).to(x.dtype)
        assert torch.equal(out, F.linear(x, restored, bias))
    monkeypatch.setattr(few_rows, "can_multiply", lambda device: True)
    assert few_rows.takes(x, scaled)
    values, scales = scaled[0][0]
    assert not few_rows.takes(x, [(ScaledRows(values.t(), scales), None)])
