"""The types of arguments, told before anything is read from them."""

from typing import Any

import torch
from torch import Tensor

from videonsa.errors import UsageError


def check_type(value: Any, wanted: type, name: str) -> None:
    """An argument of the right type; a tensor must be a plain one."""
    if not isinstance(value, wanted):
        raise UsageError(f"{name} is {_type_name(value)}: want {_name_of(wanted)}")
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise UsageError(f"{name} is a tensor of layout {value.layout}: want a dense one")


def check_int(value: Any, name: str) -> None:
    """An int, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={value!r}: want an int")


def _type_name(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _name_of(wanted: type) -> str:
    return "a torch.Tensor" if wanted is Tensor else f"one of type {wanted.__name__}"
