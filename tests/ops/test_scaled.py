"""Rows in float8 and their products, by PyTorch, against float64."""

import pytest
import torch
import torch.nn.functional as F

from videonsa.ops.scaled import (
    FLOAT8,
    LARGEST,
    SMALLEST,
    ScaledRows,
    scale_gated_rows,
    scale_rows,
    scaled_product,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def rows(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def restored(scaled):
    return scaled.values.double() * scaled.scales.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_is_off_by_at_most_its_share_or_that_of_the_largest(dtype):
    x = rows(5, 7, 96, dtype=dtype) * torch.logspace(-3, 3, 96).to(dtype)
    scaled = scale_rows(x)
    assert scaled.values.dtype == FLOAT8
    assert scaled.scales.dtype == torch.float32
    assert scaled.scales.shape == (5, 7, 1)
    exact = x.double()
    # Four significant bits; below 2^-6 of float8, steps of 2^-9.
    least = 2.0**-10 / LARGEST * exact.abs().amax(-1, keepdim=True)
    assert ((restored(scaled) - exact).abs() <= 1.0001 * (exact.abs() / 16).maximum(least)).all()


def test_the_largest_of_a_row_becomes_the_largest_of_float8():
    x = rows(50, 64) * torch.logspace(-20, 20, 50)[:, None]
    scaled = scale_rows(x)
    assert (scaled.values.float().abs().amax(-1) == LARGEST).all()
    torch.testing.assert_close(scaled.scales[:, 0], x.float().abs().amax(-1) / LARGEST)


def test_rows_of_zeros_and_of_next_to_nothing_stay_finite():
    x = torch.zeros(3, 32)
    x[1, 3] = 1e-40  # below the normal numbers of float32
    x[2, 3] = SMALLEST
    scaled = scale_rows(x)
    assert (scaled.values[:2].float() == 0).all()
    assert scaled.values[2, 3] == LARGEST
    assert (scaled.scales >= torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_gives_nan_and_others_do_not(bad):
    x, weight = rows(3, 32), scale_rows(rows(16, 32, seed=1))
    x[1, 4] = bad
    product = scaled_product(scale_rows(x), weight)
    assert product[1].isnan().all()
    assert product[[0, 2]].isfinite().all()


def test_gated_rows_are_quantised_from_float32():
    gate, up = rows(9, 64), rows(9, 64, seed=1)
    found = scale_gated_rows(gate, up)
    wanted = scale_rows(F.silu(gate.float()) * up.float())
    assert torch.equal(found.values.float(), wanted.values.float())
    assert torch.equal(found.scales, wanted.scales)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("lead", [(1,), (2, 3), (40,)], ids=str)
def test_a_product_is_that_of_the_restored_rows_rounded_once(lead, with_bias):
    x, weight = scale_rows(rows(*lead, 64)), scale_rows(rows(48, 64, seed=1))
    bias = rows(48, seed=2) if with_bias else None
    exact = restored(x) @ restored(weight).t() + (0 if bias is None else bias.double())
    found = scaled_product(x, weight, bias)
    assert found.dtype == torch.bfloat16
    assert found.shape == (*lead, 48)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2e-5)


def test_a_product_of_no_rows_has_none():
    weight = scale_rows(rows(48, 64))
    product = scaled_product(scale_rows(rows(2, 0, 64)), weight)
    assert product.shape == (2, 0, 48)
    assert isinstance(weight, ScaledRows)
