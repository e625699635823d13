"""Gradients of the cases of `kernel_cases`, and how far they may be from the float64 reference."""

from collections.abc import Sequence

import torch
from kernel_cases import Case, plain_of, run_kernels
from torch import Tensor

from videonsa.ops import nsa_attention

EPS_32 = torch.finfo(torch.float32).eps
INPUTS = ("q", "k", "v", "gates")


def make_grad(case: Case, inputs: Sequence[Tensor], *, seed: int = 7) -> Tensor:
    """A normal gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(inputs[0].shape, generator=generator).to(inputs[0])


def leaves(inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [x.detach().to(dtype or x.dtype, copy=True).requires_grad_() for x in inputs]


def kernel_gradients(
    case: Case, inputs: Sequence[Tensor], grad: Tensor, **arguments: object
) -> tuple[Tensor, ...]:
    """Of q, k, v and gates through the kernels."""
    own = leaves(inputs)
    output = nsa_attention(*own, backend="triton", **(case.arguments(inputs[0].device) | arguments))
    return torch.autograd.grad(output, own, grad)


def reference_gradients(
    case: Case, inputs: Sequence[Tensor], grad: Tensor, selected: Tensor
) -> tuple[Tensor, ...]:
    """In float64, for a given selection."""
    own = leaves(inputs, torch.float64)
    arguments = case.arguments(inputs[0].device) | {"selected_blocks": selected}
    output = nsa_attention(*own, backend="reference", **arguments)
    return torch.autograd.grad(output, own, grad.double())


def plain_gradients(
    case: Case, inputs: Sequence[Tensor], grad: Tensor, selected: Tensor
) -> tuple[Tensor, ...]:
    """Autograd through plain PyTorch in the dtype of the inputs, for a given selection."""
    own = leaves(inputs)
    output = plain_of(case, own, selected).output
    return torch.autograd.grad(output, own, grad, materialize_grads=True)


def assert_gradients_close(
    case: Case,
    inputs: Sequence[Tensor],
    grad: Tensor,
    found: Sequence[Tensor],
    selected: Tensor | None = None,
) -> None:
    """At most twice the error of plain PyTorch, plus rounding noise.

    Noise: the parts of dQ from scattered pairs are rounded where they are stored and after they
    were added, dP and the gated weights once before their products, every gradient once at the end:
    four half units in the last place of the largest value. Delta, dO o, which dP is compared with,
    is made of branches as they are stored: each element may be off by half a unit, and their sum
    by some root mean squares of that. It reaches dQ times a key, as the weights of a row add to
    one, and dK times a query of a few rows. A weight is off by the rounding of its score and LSE in
    float32: eight units.
    """
    result = run_kernels(case, inputs)
    if selected is None:
        selected = result.selected_blocks
    exact = reference_gradients(case, inputs, grad, selected)
    plain = plain_gradients(case, inputs, grad, selected)
    eps = torch.finfo(case.dtype).eps
    branches = torch.stack([result.o_cmp, result.o_slc, result.o_win])
    delta_noise = eps * _largest((branches.float() * grad.float()).square().sum(-1).sqrt())
    of_delta = {
        "q": delta_noise * case.dim**-0.5 * _largest(inputs[1]),
        "k": delta_noise * case.dim**-0.5 * _largest(inputs[0]) * 3,
    }
    for name, x, ours, theirs, wanted in zip(INPUTS, inputs, found, plain, exact, strict=True):
        assert ours.dtype == x.dtype, name
        assert ours.shape == x.shape, name
        assert ours.isfinite().all(), f"{name}: not finite"
        noise = (2 * eps + 8 * EPS_32) * _largest(wanted) + of_delta.get(name, 0.0)
        error, of_plain = (_largest(y.double() - wanted) for y in (ours, theirs))
        allowed = 2 * of_plain + noise
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def _largest(x: Tensor) -> float:
    return x.detach().abs().max().item() if x.numel() else 0.0
