"""Linear layers that share their input: few rows in one launch, rows in float8 quantised once."""

from collections.abc import Sequence
from typing import TypeGuard

from torch import Tensor, nn

from videonsa.models.fp8 import Fp8Linear, fp8_products
from videonsa.ops import few_rows


def linear_rows(x: Tensor, linears: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """The same rows `[..., K]` through several modules, each `[..., N]`."""
    in_fp8 = [linear for linear in linears if isinstance(linear, Fp8Linear)]
    if len(in_fp8) == len(linears):
        return fp8_products(x, in_fp8)
    weights = [(linear.weight, linear.bias) for linear in linears if _is_plain(linear)]
    if len(weights) == len(linears) and few_rows.takes(x, weights):
        return few_rows.linear_products(x, weights)
    return tuple(linear(x) for linear in linears)


def gated_rows(x: Tensor, gate: nn.Module, up: nn.Module) -> Tensor | None:
    """silu(gate(x)) * up(x) of few rows `[..., K]`; None where that is not one launch."""
    if not (_is_plain(gate) and _is_plain(up)) or gate.bias is not None or up.bias is not None:
        return None
    if not few_rows.takes(x, [(gate.weight, None), (up.weight, None)]):
        return None
    return few_rows.gated_product(x, gate.weight, up.weight)


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """A Linear whose call is its product: no adapter, no quantised weight, no hook of anyone."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
    )
