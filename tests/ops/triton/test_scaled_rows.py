"""The kernel that quantises rows to float8, against float64 and PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from videonsa.ops.scaled import (
    FLOAT8,
    LARGEST,
    SMALLEST,
    scale_gated_rows,
    scale_rows,
    scaled_product,
)
from videonsa.ops.triton.scaled_rows import scale_into

WIDTHS = [16, 100, 192, 1280, 3456, 18944]
"""Less than a tile, whole tiles and odd ones; rows of one warp and of sixteen."""
BIG = {"largest": LARGEST, "smallest": SMALLEST}


def rows(count, width, *, device, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator).to(device, dtype)


def scaled(x, up=None):
    """Before rounding: the interpreter's float8 is not the GPU's, and not PyTorch's."""
    values, scales = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
    scale_into(x, up, values, scales, **BIG)
    return values, scales


def assert_scaled(x, found):
    """Against rows in float64: a division, a multiplication and a rounding to x's dtype."""
    values, scales = found
    largest = x.double().abs().amax(-1)
    torch.testing.assert_close(scales.double(), largest / LARGEST, rtol=1e-6, atol=0)
    wanted = x.double() * (LARGEST / largest[:, None])
    error = torch.finfo(values.dtype).eps if values.dtype != torch.float32 else 4e-7
    torch.testing.assert_close(values.double(), wanted, rtol=error, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_any_width_are_scaled_by_their_largest(width, device):
    x = rows(3, width, device=device) * torch.tensor([[1e-9], [1.0], [3e4]], device=device)
    assert_scaled(x, scaled(x))


def test_half_precision_is_scaled_in_float32(device):
    x = rows(4, 300, device=device, dtype=torch.float16)
    assert_scaled(x, scaled(x))


@pytest.mark.parametrize("width", [96, 3456])
def test_gated_rows_are_scaled_in_float32(width, device):
    gate, up = (rows(3, width, device=device, seed=i) for i in range(2))
    values, scales = scaled(gate, up)
    product = F.silu(gate.double()) * up.double()
    largest = product.abs().amax(-1)
    torch.testing.assert_close(scales.double(), largest / LARGEST, rtol=2e-6, atol=0)
    wanted = product * (LARGEST / largest[:, None])
    torch.testing.assert_close(values.double(), wanted, rtol=2e-6, atol=1e-5)


def test_rows_that_lie_apart_in_memory_are_read_as_they_are(device):
    wide, ups = (rows(4, 128, device=device, seed=i) for i in range(2))
    found, wanted = scaled(wide[:, 32:96], ups[:, :64]), scaled(wide[:, 32:96] + 0, ups[:, :64] + 0)
    for x, y in zip(found, wanted, strict=True):
        assert torch.equal(x, y)


def test_zeros_stay_zero_and_numbers_below_the_normal_ones_vanish(device):
    x = torch.zeros(3, 40, device=device)
    x[1, 3], x[2, 3] = 1e-40, SMALLEST
    values, scales = scaled(x)
    assert (values[0] == 0).all()
    assert values[1].abs().max() < 2.0**-10, "half of the least of float8"
    assert values[2, 3] == LARGEST
    assert (scales == SMALLEST / LARGEST).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of numpy
def test_nan_stays_where_it_was_and_infinity_leaves_no_number(device):
    x = rows(4, 300, device=device)
    x[1, 7], x[2, 9] = torch.nan, -torch.inf
    values, scales = scaled(x)
    assert values[1].isnan().nonzero().tolist() == [[7]]
    assert values[2].isnan().nonzero().tolist() == [[9]]
    assert scales[2] == torch.inf
    others = [0, 3]
    assert_scaled(x[others], (values[others], scales[others]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [*WIDTHS, 29568])
def test_float8_of_the_gpu_is_float8_of_the_cpu(width, dtype, device):
    x = rows(33, width, device=device, dtype=dtype)
    x *= torch.logspace(-4, 3, 33, device=device).to(dtype)[:, None]
    x[3], x[5, 7], x[6, 1] = 0, torch.nan, torch.inf
    found, wanted = scale_rows(x), scale_rows(x.cpu())
    assert found.values.dtype == FLOAT8
    assert torch.equal(found.scales.cpu(), wanted.scales)
    torch.testing.assert_close(
        found.values.float().cpu(), wanted.values.float(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 2, 7, 16, 33, 1000])
@pytest.mark.parametrize("sides", [(3584, 512), (3584, 18944), (18944, 3584), (1280, 3840)])
def test_products_on_the_gpu_are_those_of_the_restored_rows(sides, num_rows, device):
    inner, outer = sides
    x = scale_rows(rows(num_rows, inner, device=device, dtype=torch.bfloat16))
    weight = scale_rows(rows(outer, inner, device=device, seed=1, dtype=torch.bfloat16))
    bias = rows(1, outer, device=device, seed=2, dtype=torch.bfloat16)[0]
    exact = (x.values.double() * x.scales) @ (weight.values.double() * weight.scales).t() + bias
    error = (scaled_product(x, weight, bias) - exact).norm() / exact.norm()
    assert error < 2**-7, "bfloat16 has eight bits, the sums of Hopper's float8 thirteen or more"


@pytest.mark.gpu
def test_gated_rows_on_the_gpu_are_one_step_of_float8_off_at_most(device):
    gate, up = (rows(100, 18944, device=device, seed=i, dtype=torch.bfloat16) for i in range(2))
    found, wanted = scale_gated_rows(gate, up), scale_gated_rows(gate.cpu(), up.cpu())
    torch.testing.assert_close(found.scales.cpu(), wanted.scales, rtol=1e-6, atol=0)
    values = (found.values.cpu().float(), wanted.values.float())
    torch.testing.assert_close(*values, rtol=1 / 8, atol=2.0**-9)
    assert (values[0] != values[1]).float().mean() < 1e-3
