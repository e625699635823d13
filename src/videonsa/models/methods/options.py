"""The options of a method as text: `key=value,...`, read by the types of a dataclass' fields."""

import math
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from videonsa.errors import UsageError
from videonsa.models.methods.protocol import BEHIND, AttentionMethod

SEPARATOR = "/"
"""Between the values of a tuple."""
_SHOWN = 60
"""Characters of a value in a message."""
_TRUTH = {"true": True, "false": False}


class Option(NamedTuple):
    """One option of a method."""

    name: str
    kind: Any
    """Its type, as the field states it."""
    default: Any


def options_of(method: type[AttentionMethod]) -> tuple[Option, ...]:
    """The options of a method, in the order of their fields."""
    stated = method.option_class()
    if stated is None:
        return ()
    hints = get_type_hints(stated)
    return tuple(
        Option(one.name, hints[one.name], _default(one))
        for one in fields(stated)
        if one.init and one.name != BEHIND
    )


def read_options(name: str, method: type[AttentionMethod], text: str) -> dict[str, Any]:
    """The options in a text such as `stride=16,threshold=0.9`.

    Args:
        name: of the method, for messages.
        method: whose options they are.
        text: empty, or `key=value` with commas between; the values of a tuple with "/" between.

    Raises:
        UsageError: what is no `key=value`, an unknown or repeated key, or a value of another type.
    """
    known = {option.name: option for option in options_of(method)}
    found: dict[str, Any] = {}
    for pair in text.split(",") if text else ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"method {name!r}: {_short(pair)} is no option: want key=value")
        if key not in known:
            wanted = f"some of {', '.join(known)}" if known else "none"
            raise UsageError(f"method {name!r} has no option {_short(key)}: want {wanted}")
        if key in found:
            raise UsageError(f"method {name!r} is told {key} twice: want it once")
        try:
            found[key] = read_value(known[key].kind, value)
        except ValueError:
            raise UsageError(
                f"method {name!r}: {key}={_short(value)}: want {describe_kind(known[key].kind)}"
            ) from None
    return found


def read_value(kind: Any, text: str) -> Any:
    """A value by its type.

    Args:
        kind: int, float, bool, str, None, a literal of these, a tuple, or a union.
        text: of the value.

    Raises:
        ValueError: it is of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_union(inner, text)
    if origin is Literal:
        return next((value for value in inner if str(value) == text), None) or _refuse(text)
    if origin is tuple:
        parts = text.split(SEPARATOR) if text else []
        kinds = inner[:1] * len(parts) if inner[-1] is ... else inner
        return tuple(read_value(*pair) for pair in zip(kinds, parts, strict=True))
    if kind is bool:
        return _TRUTH[text] if text in _TRUTH else _refuse(text)
    if kind is NoneType:
        return None if text == "none" else _refuse(text)
    if kind is float:
        return float(text) if math.isfinite(float(text)) else _refuse(text)
    return kind(text)


def _read_union(kinds: tuple[Any, ...], text: str) -> Any:
    for kind in sorted(kinds, key=lambda kind: kind is str):  # which takes any text
        try:
            return read_value(kind, text)
        except ValueError:
            continue
    return _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def describe_kind(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(describe_kind, inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        return f"{describe_kind(inner[0])}, others with {SEPARATOR} between"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kind, "none")


def value_text(value: Any) -> str:
    """A value as `read_value` reads it."""
    if isinstance(value, tuple | list):
        return SEPARATOR.join(map(value_text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _default(one: "Field[Any]") -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return None if one.default is MISSING else one.default


def _short(value: str) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
