"""Linear layers in float8: what they compute, what they share, what they refuse."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from videonsa.errors import ModelError, UsageError
from videonsa.models import fp8
from videonsa.models.fp8 import Fp8Linear
from videonsa.models.fused import FusedMLP
from videonsa.models.linears import linear_rows
from videonsa.ops import few_rows
from videonsa.ops.scaled import ScaledRows, scale_gated_rows, scale_rows


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def linear(inner, outer, *, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inner, outer, bias=bias, dtype=torch.bfloat16)


def restored(rows):
    return rows.values.double() * rows.scales.double()


def plain(rows):
    """In the dtype of a model."""
    return restored(rows).bfloat16()


def exact(layer, x):
    """The product of what was quantised, in float64."""
    bias = 0 if layer.bias is None else layer.bias.double()
    weight = restored(ScaledRows(layer.weight, layer.scales))
    return restored(scale_rows(x)) @ weight.t() + bias


@pytest.fixture
def quantised(monkeypatch):
    """Shapes of the rows that are quantised, in turn."""
    shapes = []

    def record(x):
        shapes.append(tuple(x.shape))
        return scale_rows(x)

    monkeypatch.setattr(fp8, "scale_rows", record)
    return shapes


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_quantised_rows_by_quantised_weights(bias):
    layer, x = linear(64, 48, bias=bias), normal(2, 5, 64)
    with torch.no_grad():
        found, full = Fp8Linear.of(layer)(x), layer(x)
    assert found.dtype == x.dtype
    torch.testing.assert_close(found.double(), exact(Fp8Linear.of(layer), x), rtol=2**-8, atol=1e-5)
    assert not torch.equal(found, full)
    assert (found - full).norm() < 0.05 * full.norm()


def test_outputs_have_the_dtype_of_the_rows():
    layer = Fp8Linear.of(linear(32, 16).float())
    assert layer(normal(3, 32).float()).dtype == torch.float32


def test_the_same_rows_are_quantised_once_for_several_layers(quantised):
    layers, x = [Fp8Linear.of(linear(32, n, seed=n)) for n in (16, 32, 48)], normal(4, 32)
    quantised.clear()
    together = linear_rows(x, layers)
    assert quantised == [(4, 32)]
    for layer, product in zip(layers, together, strict=True):
        assert torch.equal(product, layer(x))


def test_other_layers_do_their_own_products():
    layers, x = [linear(32, 16), Fp8Linear.of(linear(32, 16))], normal(4, 32)
    with torch.no_grad():
        for layer, product in zip(layers, linear_rows(x, layers), strict=True):
            assert torch.equal(product, layer(x))


def test_padding_adds_nothing_and_gives_zeros():
    layer, x = linear(32, 40), normal(4, 32)
    wide, narrow = Fp8Linear.of(layer, more_out=24), Fp8Linear.of(layer, more_out=8)
    assert torch.equal(wide(x)[:, :40], narrow(x)[:, :40])
    assert (wide(x)[:, 40:] == 0).all()
    deep = Fp8Linear.of(linear(40, 16), more_in=24)
    padded = F.pad(normal(4, 40), (0, 24))
    assert deep(padded).shape == (4, 16)
    assert torch.equal(deep(padded + F.pad(torch.ones(24), (40, 0)).bfloat16() / 64), deep(padded))


def test_an_mlp_quantises_its_rows_once_and_its_product_as_it_is_made(quantised):
    config = SimpleNamespace(hidden_size=32, intermediate_size=64, hidden_act="silu")
    mlp, x = FusedMLP(config).bfloat16(), normal(2, 3, 32)
    for name in ("gate_proj", "up_proj", "down_proj"):
        setattr(mlp, name, Fp8Linear.of(getattr(mlp, name)))
    quantised.clear()
    found = mlp(x)
    assert quantised == [(2, 3, 32)]
    rows = scale_gated_rows(mlp.gate_proj(x), mlp.up_proj(x))
    down = mlp.down_proj
    wanted = restored(rows) @ restored(ScaledRows(down.weight, down.scales)).t()
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-5)


def test_an_mlp_without_silu_keeps_its_own_activation():
    config = SimpleNamespace(hidden_size=32, intermediate_size=64, hidden_act="gelu")
    mlp, x = FusedMLP(config).bfloat16(), normal(3, 32)
    with torch.no_grad():
        full = mlp(x)
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(mlp, name, Fp8Linear.of(getattr(mlp, name)))
        found = mlp(x)
    assert (found - full).norm() < 0.1 * full.norm()


def test_few_rows_are_not_quantised_where_a_kernel_takes_them(quantised, monkeypatch):
    config = SimpleNamespace(hidden_size=32, intermediate_size=64, hidden_act="silu")
    mlp, x = FusedMLP(config).bfloat16(), normal(2, 3, 32)
    for name in ("gate_proj", "up_proj", "down_proj"):
        setattr(mlp, name, Fp8Linear.of(getattr(mlp, name)))
    quantised.clear()
    by_few = few_rows.linear_products, few_rows.gated_product
    gate, down = mlp.gate_proj.scaled, mlp.down_proj.scaled
    wanted = by_few[0](by_few[1](x, gate, mlp.up_proj.scaled), [(down, None)])[0]
    monkeypatch.setattr(few_rows, "takes", lambda x, weights: x.numel() <= 16 * x.shape[-1])
    monkeypatch.setattr(few_rows, "linear_products", lambda x, w: (F.linear(x, plain(w[0][0])),))
    monkeypatch.setattr(
        few_rows,
        "gated_product",
        lambda x, g, u: F.silu(F.linear(x, plain(g))) * F.linear(x, plain(u)),
    )
    assert torch.equal(mlp(x), wanted)
    assert quantised == []
    mlp(normal(17, 32))
    assert quantised == [(17, 32)]


def test_a_gradient_is_refused():
    layer, x = Fp8Linear.of(linear(32, 16)), normal(4, 32).requires_grad_()
    with pytest.raises(UsageError, match="no gradients: train the model with weights='full'"):
        layer(x)
    with torch.no_grad():
        layer(x)


def test_sides_that_the_product_does_not_take_are_refused():
    with pytest.raises(ModelError, match="a layer of 40 x 16: want multiples of 16"):
        Fp8Linear.of(linear(40, 16))
