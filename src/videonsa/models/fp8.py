"""Linear layers in float8: weights quantised once, their rows of input at every call.

A few rows, those of a decode step, are bound by reading the weights: they stay as they are.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from videonsa.errors import ModelError, UsageError
from videonsa.ops import few_rows
from videonsa.ops.scaled import (
    MULTIPLE,
    ScaledRows,
    scale_gated_rows,
    scale_rows,
    scaled_product,
)


class Fp8Linear(nn.Module):
    """A Linear whose weight is float8, each row with its own scale; it has no gradients."""

    def __init__(self, weight: ScaledRows, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.weight = nn.Parameter(weight.values, requires_grad=False)  # float8 [N, K]
        self.scales = nn.Parameter(weight.scales, requires_grad=False)  # float32 [N, 1]
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear, *, more_in: int = 0, more_out: int = 0) -> Self:
        """Quantise a Linear, with so many inputs more, which add nothing, and outputs of 0.

        Raises:
            ModelError: a size that the product does not take.
        """
        weight = nn.functional.pad(linear.weight.detach(), (0, more_in, 0, more_out))
        if any(size % MULTIPLE for size in weight.shape):
            raise ModelError(
                f"weights='fp8' of a layer of {linear.in_features} x {linear.out_features}: want "
                f"multiples of {MULTIPLE}; use int8"
            )
        bias = linear.bias
        padded = None if bias is None else nn.functional.pad(bias.detach(), (0, more_out))
        return cls(scale_rows(weight), padded)

    def forward(self, x: Tensor) -> Tensor:
        """Rows `[..., in_features]` to `[..., out_features]`, in their dtype, from bfloat16."""
        return fp8_products(x, [self])[0]

    @property
    def scaled(self) -> ScaledRows:
        """The weight `[out_features, in_features]`."""
        return ScaledRows(self.weight, self.scales)

    def of_scaled(self, rows: ScaledRows, dtype: torch.dtype) -> Tensor:
        """As `forward`, of rows that are quantised."""
        return scaled_product(rows, self.scaled, self.bias).to(dtype)

    def extra_repr(self) -> str:
        """As a Linear tells its sizes."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def fp8_products(x: Tensor, layers: Sequence[Fp8Linear]) -> tuple[Tensor, ...]:
    """The same rows `[..., K]` through several layers; they are quantised once.

    Raises:
        UsageError: a gradient is wanted.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise UsageError("weights='fp8' have no gradients: train the model with weights='full'")
    weights = [(layer.scaled, layer.bias) for layer in layers]
    if few_rows.takes(x, weights):
        return few_rows.linear_products(x, weights)
    rows = scale_rows(x)
    return tuple(layer.of_scaled(rows, x.dtype) for layer in layers)


def fp8_gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    """A gated MLP in float8 of rows `[..., hidden]`: what silu gives is quantised as it is made."""
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if gate.bias is None and few_rows.takes(x, [(gate.scaled, None), (up.scaled, None)]):
        return fp8_products(few_rows.gated_product(x, gate.scaled, up.scaled), [down])[0]
    rows = scale_gated_rows(*fp8_products(x, [gate, up]))
    product: Tensor = down.of_scaled(rows, x.dtype)
    return product
