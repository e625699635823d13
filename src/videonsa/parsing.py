"""Reading JSON that somebody wrote: what is no such file, or no such JSON, is one error."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from enum import EnumType
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from videonsa.errors import UsageError, VideoNSAError

MOST_BYTES = 2**28
"""Of a JSON file. The largest that is met, a tokenizer's, has 2**24."""
_MOST_INT = 2**63


def parse_json(text: str | bytes, *, allow_nan: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: in UTF-8.
        allow_nan: take NaN and Infinity, which JSON does not know and Python writes.

    Raises:
        ValueError: it is none: broken, nested too deeply, in no UTF-8, or with a number of more
            digits than Python reads.

    """
    try:
        return json.loads(text, parse_constant=None if allow_nan else _refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def read_regular(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a file that is one: no pipe or device, which may never end.

    Raises:
        OSError: it is not there, not readable, no regular file, or larger than `most_bytes`.

    """
    check_regular(path)
    if (size := path.stat().st_size) > most_bytes:
        raise OSError(f"it has {size} bytes, of at most {most_bytes}")
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Refuse what is not there or no regular file, before opening it may wait for ever.

    Raises:
        OSError: as said.

    """
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    if not path.is_file():
        raise OSError("it is not a regular file")


def read_json_object(
    path: Path,
    *,
    error: type[VideoNSAError] = UsageError,
    remedy: str = "write it again, or name another",
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        error: what to raise.
        remedy: what the reader should do; the end of the message.

    Raises:
        VideoNSAError: as `error` says; the file is not there or holds no JSON object.

    """
    try:
        content = parse_json(read_regular(path))
    except OSError as reason:
        raise error(f"{path} cannot be read ({one_line(reason)}): {remedy}") from reason
    except ValueError as reason:
        raise error(f"{path} is not readable JSON ({one_line(reason)}): {remedy}") from reason
    if not isinstance(content, dict):
        raise error(f"{path} holds no JSON object: {remedy}")
    return content


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of an error, cut and on one line; of the system's, without the path."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:most] or type(error).__name__


def typed(kind: Any, value: Any) -> Any:
    """A value of JSON as the type of a dataclass, or of one of its fields, states it.

    Lists become tuples where tuples are wanted; numbers are finite and of 64 bits.

    Args:
        kind: a dataclass, an enumeration, bool, int, float, str, None, Any, or of these a list,
            tuple, dict, union or literal.
        value: of `parse_json`.

    Raises:
        ValueError: it is of another type, or a field is unknown.
        TypeError: a field is missing.

    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _typed_fields(kind, value)
    if isinstance(kind, EnumType):
        return kind(value)
    if origin in (Union, UnionType):
        return _typed_union(inner, value)
    if origin in (tuple, Sequence, list) and isinstance(value, list):
        kinds = inner if origin is tuple and inner[-1] is not ... else inner[:1] * len(value)
        items = [typed(*pair) for pair in zip(kinds, value, strict=True)]
        return items if origin is list else tuple(items)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: typed(inner[1], item) for key, item in value.items()}
    if (origin is Literal and value in inner) or _is_scalar(kind, value):
        return float(value) if kind is float else value
    raise ValueError(f"{str(value)[:40]!r} where {getattr(kind, '__name__', kind)} is wanted")


def _typed_fields(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} where {kind.__name__} is wanted")
    hints = _hints(kind)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{min(unknown)[:40]!r} is no field of {kind.__name__}")
    return kind(**{name: typed(hints[name], item) for name, item in value.items()})


_hints = functools.cache(get_type_hints)


def _typed_union(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        with suppress(ValueError, TypeError):
            return typed(kind, value)
    raise ValueError(f"{str(value)[:40]!r} where {' or '.join(map(str, kinds))} is wanted")


def _is_scalar(kind: Any, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) < _MOST_INT and math.isfinite(value)
    return type(value) is kind and (kind is not int or abs(value) < _MOST_INT)
