"""The types of arguments, told before anything is read from them."""

from typing import Any

import torch
from torch import Tensor

from videonsa.errors import UsageError


def check_type(value: Any, wanted: type, name: str) -> None:
    """An argument of the right type; a tensor must be a plain one."""
    if not isinstance(value, wanted):
        raise UsageError(f"{name} is {shown(value)}: want {_name_of(wanted)}")
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise UsageError(f"{name} is a tensor of layout {value.layout}: want a dense one")


def check_int(value: Any, name: str) -> None:
    """An int, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {shown(value)}: want an int")


def check_readable(tensor: Tensor, name: str) -> None:
    """A tensor whose values the host can read."""
    if tensor.is_meta:
        raise UsageError(f"{name} is on the meta device, which holds no values: want another")


def shown(value: Any) -> str:
    """A value as an error names it, in one line: what is no scalar by its type."""
    scalar = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if scalar else f"of type {type(value).__name__}"


def _name_of(wanted: type) -> str:
    return "a torch.Tensor" if wanted is Tensor else f"one of type {wanted.__name__}"
