"""The one parser of an `NSASpec` that a file or a recipe states, with bounds on its work."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

from videonsa.errors import ModelError, VideoNSAError
from videonsa.ops.spec import NSASpec

_INTS = MappingProxyType(
    {
        "block_size": (1, 2**16),
        "num_selected_blocks": (1, 2**12),
        "window_size": (1, 2**24),
        "num_init_blocks": (0, 2**12),
        "num_local_blocks": (0, 2**12),
    }
)
"""Least and most: closer than those of `NSASpec`, since anybody may have written the file."""
_ADDED = MappingProxyType({"selection": "scores"})
"""Younger fields and their defaults."""
_MOST_TEMPERATURE = 2**16
_SHOWN = 60
"""Characters of a value in a message."""


def spec_to_dict(spec: NSASpec) -> dict[str, Any]:
    """`stated_fields` as JSON keeps them: tuples become lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in stated_fields(spec).items()
    }


def stated_fields(spec: NSASpec) -> dict[str, Any]:
    """The fields of a spec as configs and records keep them.

    A field that younger versions added is left out where it has its default: what older ones wrote
    stays equal.
    """
    stated = asdict(spec)
    return {name: x for name, x in stated.items() if name not in _ADDED or x != _ADDED[name]}


def spec_from_dict(
    stated: Mapping[str, Any], *, where: str = "nsa", error: type[VideoNSAError] = ModelError
) -> NSASpec:
    """The spec of these fields; those that are left out have the paper's values.

    Args:
        stated: fields of `NSASpec`, with lists in place of tuples.
        where: the name of the fields together, for messages.
        error: what is raised.

    Raises:
        error: a field that no spec has, or a value outside its domain: what came, what was wanted.
    """
    known = {field.name for field in fields(NSASpec)}
    unknown = sorted(set(stated) - known)
    if unknown:
        raise error(f"{where} has {_short(unknown)}: want only {sorted(known)}")
    for name, wanted in _outside(stated):
        raise error(f"{where}.{name}={_short(stated[name])}: want {wanted}")
    values: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in stated.items()
    }
    try:
        return NSASpec(**values)
    except (TypeError, ValueError) as problem:
        raise error(f"{where}: {problem}") from problem


def _outside(stated: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers that are out of bounds, each with what was wanted."""
    found = []
    for name, (least, most) in _INTS.items():
        value = stated.get(name, least)
        is_frame = name == "block_size" and isinstance(value, str) and value == "frame"
        if not is_frame and not (type(value) is int and least <= value <= most):
            frame = " or 'frame'" if name == "block_size" else ""
            found.append((name, f"an int from {least} to {most}{frame}"))
    temperature = stated.get("gate_temperature", 1)
    if type(temperature) not in (int, float) or not 0 < temperature <= _MOST_TEMPERATURE:
        found.append(("gate_temperature", f"a number above 0, at most {_MOST_TEMPERATURE}"))
    return found


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        return "a number of too many digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
