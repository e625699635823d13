"""Products of a few rows by kernels against float64."""

import pytest
import torch
import torch.nn.functional as F

from videonsa.ops.scaled import scale_rows
from videonsa.ops.triton.decode_tuning import ProductConfig
from videonsa.ops.triton.few_rows import gated_triton, products_triton

CONFIGS = {
    "one row in registers": (1, ProductConfig(1, 8, 32, 1, 1)),
    "one row of a tile": (1, ProductConfig(16, 16, 32, 4, 1)),
    "some rows": (5, ProductConfig(16, 16, 32, 4, 1)),
    "all rows": (16, ProductConfig(16, 32, 16, 4, 1)),
}
DTYPES = [torch.float32, torch.float16]


def make(device, num_rows, size, *sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    return normal(num_rows, size), [(normal(n, size), normal(n)) for n in sizes]


def noise(dtype, size):
    return 4 * size**0.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(32,), (64, 32), (32, 64, 32), (33, 7, 40)])
@pytest.mark.parametrize("name", CONFIGS)
def test_up_to_three_weights_share_their_rows(name, sizes, dtype, device):
    num_rows, config = CONFIGS[name]
    x, weights = make(device, num_rows, 96, *sizes, dtype=dtype)
    weights[0] = (weights[0][0], None)
    found = products_triton(x, weights, config=config)
    for out, (w, bias) in zip(found, weights, strict=True):
        wanted = F.linear(x.double(), w.double(), None if bias is None else bias.double())
        assert out.dtype == dtype
        tolerance = noise(dtype, 96)
        torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("size", "num_out"), [(96, 64), (40, 35)], ids=["whole tiles", "not"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gate_and_up_are_rounded_before_silu(name, size, num_out, device):
    num_rows, config = CONFIGS[name]
    dtype = torch.float16
    x, ((gate, _), (up, _)) = make(device, num_rows, size, num_out, num_out, dtype=dtype)
    found = gated_triton(x, gate, up, config=config)
    g, u = (F.linear(x.double(), w.double()).to(dtype) for w in (gate, up))
    wanted = (F.silu(g.float()).to(dtype) * u).float()
    # The sums may be rounded to a neighbour, no more.
    torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=4e-3)
    assert (found.float() == wanted).float().mean() > 0.9


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_in_float8_are_multiplied_by_rows_as_they_are(name, device):
    num_rows, config = CONFIGS[name]
    x, weights = make(device, num_rows, 96, 32, 40)
    scaled = [(scale_rows(w), bias) for w, bias in weights]
    exact = [w.values.double() * w.scales for w, _ in scaled]
    found = products_triton(x, scaled, config=config)
    tolerance = noise(torch.float32, 96)
    for out, w, (_, bias) in zip(found, exact, scaled, strict=True):
        wanted = F.linear(x.double(), w, bias.double())
        torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
    found = gated_triton(x, scaled[0][0], scaled[0][0], config=config)
    (plain,) = products_triton(x, [(scaled[0][0], None)], config=config)
    wanted = F.silu(plain) * plain
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 4, 16])
@pytest.mark.parametrize("sides", [(3584, 18944), (18944, 3584), (3584, 512)])
def test_weights_in_float8_with_the_tuning_of_the_gpu(sides, num_rows, device):
    inner, outer = sides
    x, weights = make(device, num_rows, inner, outer, outer, dtype=torch.bfloat16)
    scaled = [(scale_rows(w), bias) for w, bias in weights]
    for out, (w, bias) in zip(products_triton(x, scaled), scaled, strict=True):
        wanted = F.linear(x.double(), w.values.double() * w.scales, bias.double())
        assert (out - wanted).norm() < 2**-8 * wanted.norm()


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, of inf times 0
def test_a_row_that_is_not_finite_reaches_no_other(device):
    x, weights = make(device, 5, 64, 32)
    (wanted,) = products_triton(x, weights, config=CONFIGS["some rows"][1])
    x[2] = torch.nan
    (found,) = products_triton(x, weights, config=CONFIGS["some rows"][1])
    others = [0, 1, 3, 4]
    assert torch.equal(found[others], wanted[others])
    assert found[2].isnan().all()
