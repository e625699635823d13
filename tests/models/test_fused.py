"""The kernels of norms, gated products and rotations against PyTorch; the way without them."""

import builtins
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from videonsa.models import fused
from videonsa.models._hf import Qwen2_5_VLRMSNorm, apply_rotary_pos_emb_vision

ROWS, WIDTH = 300, 96


def normal(*size, seed=0, device="cpu"):
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return x.to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def angles(rows, dim, device="cpu"):
    half = torch.rand(1, rows, dim // 2, generator=torch.Generator().manual_seed(9)) * 6
    both = torch.cat([half, half], dim=-1)
    return both.cos().to(device), both.sin().to(device)


def turned(x, cos, sin):
    """In float64, pair by pair, as complex numbers."""
    first, second = x.double().chunk(2, dim=-1)
    half = x.shape[-1] // 2
    turn = torch.complex(cos[..., :half].double(), sin[..., :half].double()).unsqueeze(2)
    product = torch.complex(first, second) * turn
    return torch.cat([product.real, product.imag], dim=-1)


def close(found, wanted, *, ulps=2):
    eps = torch.finfo(found.dtype).eps
    scale = wanted.double().abs().max()
    assert (found.double() - wanted.double()).abs().max() <= ulps * eps * scale


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    if request.param == "cuda":
        pytest.importorskip("liger_kernel")
    return request.param


def test_rotation_is_a_complex_product(place):
    q, k = normal(1, ROWS, 7, 32, device=place), normal(1, ROWS, 2, 32, seed=1, device=place)
    cos, sin = angles(ROWS, 32, place)
    wanted = [turned(x, cos, sin) for x in (q, k)]
    for found, reference in zip(fused.rotate(q, k, cos, sin), wanted, strict=True):
        close(found, reference)


def test_vision_rotation_is_that_of_transformers(place):
    qkv = normal(ROWS, 3, 4, 20, device=place)
    q, k, _ = qkv.unbind(1)
    cos, sin = (x[0] for x in angles(ROWS, 20, place))
    wanted = apply_rotary_pos_emb_vision(q.clone(), k.clone(), cos, sin)
    before = qkv.clone()
    for found, reference in zip(fused.rotate_vision(q, k, cos, sin), wanted, strict=True):
        close(found, reference, ulps=1)
    assert torch.equal(qkv, before), "q and k of a joint projection are not overwritten"


def test_values_and_gradients_of_norm_and_product_are_pytorchs(place):
    norm = fused.FusedRMSNorm(WIDTH, eps=1e-6).to(place, normal(1, device=place).dtype)
    with torch.no_grad():
        norm.weight.copy_(normal(WIDTH, seed=5))
    plain = Qwen2_5_VLRMSNorm(WIDTH, eps=1e-6).to(norm.weight)
    plain.load_state_dict(norm.state_dict())
    x, up = (normal(2, ROWS, WIDTH, seed=i, device=place) for i in (2, 3))
    grad = normal(2, ROWS, WIDTH, seed=4, device=place)
    results = []
    for one, product in ((norm, fused.silu_mul), (plain, lambda a, b: F.silu(a) * b)):
        a, b = x.clone().requires_grad_(), up.clone().requires_grad_()
        out = product(one(a), b)
        out.backward(grad.clone())
        results.append([out.detach(), a.grad, b.grad, one.weight.grad])
    for found, wanted in zip(*results, strict=True):
        close(found, wanted, ulps=4)


def test_gradients_of_rotation_turn_back(place):
    q, k = (normal(1, ROWS, h, 32, seed=h, device=place).requires_grad_() for h in (6, 2))
    cos, sin = angles(ROWS, 32, place)
    found = fused.rotate(q * 1, k * 1, cos, sin)
    grads = [normal(*x.shape, seed=7, device=place) for x in found]
    wanted = [turned(g, cos, -sin) for g in grads]
    torch.autograd.backward(found, [g.clone() for g in grads])
    for x, reference in zip((q, k), wanted, strict=True):
        close(x.grad, reference)


def test_without_the_package_the_log_says_what_to_install(monkeypatch, caplog):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("liger_kernel"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    fused._kernels.cache_clear()
    try:
        assert fused._kernels() is None
        assert "videonsa[gpu]" in caplog.text
    finally:
        fused._kernels.cache_clear()


def test_rows_of_an_mlp_go_part_by_part_where_no_gradient_is_wanted(monkeypatch):
    config = SimpleNamespace(hidden_size=WIDTH, intermediate_size=40, hidden_act="silu")
    mlp, x = fused.FusedMLP(config), normal(2, ROWS, WIDTH)
    wanted, seen = mlp(x), []
    monkeypatch.setattr(fused, "ROWS_PER_CHUNK", 70)
    mlp.up_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0].numel()))
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), wanted)
    assert seen == [70] * 8 + [40]
    mlp(x)
    assert seen[9:] == [2 * ROWS], "with gradients all at once"
