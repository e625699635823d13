"""Linear layers that share their input: which are multiplied together, and which by themselves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from videonsa.models import linears
from videonsa.models.linears import gated_rows, linear_rows
from videonsa.ops import few_rows


@pytest.fixture
def launches(monkeypatch):
    """The weights of each launch, as if there were a GPU."""
    found = []

    def products(x, weights):
        found.append([w for w, _ in weights])
        return tuple(F.linear(x, *weight) for weight in weights)

    def gated(x, gate, up):
        found.append([gate, up])
        return F.silu(F.linear(x, gate)) * F.linear(x, up)

    monkeypatch.setattr(few_rows, "takes", lambda x, weights: True)
    monkeypatch.setattr(few_rows, "linear_products", products)
    monkeypatch.setattr(few_rows, "gated_product", gated)
    assert linears.few_rows is few_rows
    return found


def make():
    torch.manual_seed(0)
    return torch.randn(1, 2, 8), [nn.Linear(8, size) for size in (4, 6)]


def test_plain_layers_are_multiplied_in_one_launch(launches):
    x, layers = make()
    found = linear_rows(x, layers)
    assert launches == [[layer.weight for layer in layers]]
    for out, layer in zip(found, layers, strict=True):
        assert torch.equal(out, layer(x))


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


def with_hook(layer):
    layer.register_forward_hook(lambda module, inputs, output: output / 2)
    return layer


def with_forward(layer):
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias) / 2
    return layer


@pytest.mark.parametrize("change", [with_hook, with_forward, lambda layer: Halved(8, 6)])
def test_a_layer_that_does_more_than_multiply_is_called(change, launches):
    x, layers = make()
    layers[1] = change(layers[1])
    found = linear_rows(x, layers)
    assert not launches
    assert torch.equal(found[1], layers[1](x))
    assert gated_rows(x, *layers) is None


def test_gate_and_up_without_biases_are_one_launch(launches):
    x, _ = make()
    gate, up = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
    assert torch.equal(gated_rows(x, gate, up), F.silu(gate(x)) * up(x))
    assert len(launches) == 1
    assert gated_rows(x, gate, nn.Linear(8, 4)) is None
