"""The folder of a run: `samples.jsonl`, one line per sample, and `run.json`, its options.

A line is written as soon as its sample is answered, so a run that was killed resumes after it. Each
task defines its own lines; this module only knows that they are dataclasses with a key.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, Protocol, TypeVar

from videonsa.data.files import json_lines, open_for_lines
from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.parsing import one_line, read_json_object, typed

SAMPLES, RUN = "samples.jsonl", "run.json"
_REMEDY = (
    "name another folder, or delete the file, or the line, to have what it answers asked again"
)

Key = tuple[Any, ...]
"""Identifies a sample within its task; keys can be sorted."""


class Line(Protocol):
    """A sample, its answer and what it took: a frozen dataclass of JSON values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> Key:
        """Which sample the line is about."""


LineT = TypeVar("LineT", bound=Line)
ParseLine = Callable[[Any], LineT]
"""From the JSON value of a line; raises ValueError, TypeError or KeyError of a wrong one."""


def read_lines(folder: Path, parse: ParseLine[LineT], *, name: str = SAMPLES) -> list[LineT]:
    """All lines in order of their keys. A last line that was cut off is left out.

    Args:
        folder: of the run.
        parse: a line.
        name: of the file, where each process has its own.

    Raises:
        UsageError: no such file, or one that holds something else.
    """
    path = folder / name
    if not path.exists():
        raise UsageError(f"{path} is not there: run 'videonsa eval' with this --out first")
    lines, _ = _read(path, parse)
    return [lines[key] for key in sorted(lines)]


def _read(path: Path, parse: ParseLine[LineT]) -> tuple[dict[Key, LineT], int]:
    """Lines by their keys, the last of each, and the bytes of whole lines."""
    lines: dict[Key, LineT] = {}
    whole = 0
    for line, end in json_lines(path, read=lambda _, content: parse(content), remedy=_REMEDY):
        lines[line.key] = line
        whole = end
    return lines, whole


@contextmanager
def appending(
    folder: Path, parse: ParseLine[LineT], *, name: str = SAMPLES
) -> Iterator["Journal[LineT]"]:
    """Resume `samples.jsonl`, a cut-off last line removed; make it where there is none.

    A file must have one writer at a time: see `videonsa.disk.sole_writer`. Args are those of
    `read_lines`.
    """
    path = folder / name
    known, whole = _read(path, parse) if path.exists() else ({}, 0)
    with open_for_lines(path, after=whole, remedy=_REMEDY) as file:
        yield Journal(file, known)


class Journal(Generic[LineT]):
    """The lines so far, by their keys, and a place for more."""

    def __init__(self, file: BinaryIO, lines: dict[Key, LineT]) -> None:
        self._file = file
        self.lines = lines

    def append(self, line: LineT) -> None:
        """Write a line at once, so that it outlives this process; it replaces one of its key."""
        text = json.dumps(asdict(line), ensure_ascii=False, allow_nan=False)
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        self.lines[line.key] = line


def read_run(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says; None where there is none.

    Raises:
        UsageError: one that cannot be read.
    """
    path = folder / RUN
    if not path.exists():
        return None
    found = read_json_object(path, remedy="name another folder with --out")
    try:
        _ = typed(dict[str, Any], found["config"]), typed(float, found.get("seconds", 0.0))
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{path} is of no run ({one_line(error)}): name another folder with --out"
        ) from error
    return found


def write_run(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `run.json` atomically: `config` holds the options, `seconds` the time spent so far."""
    write_atomic(folder / RUN, json.dumps(facts, indent=2, allow_nan=False) + "\n")


def check_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to resume in a folder that holds answers of another run.

    Args:
        folder: of the run.
        identity: the options, part of `config`, that all lines of a folder share.

    Raises:
        UsageError: naming the first option that differs.
    """
    before = read_run(folder)
    if before is None:
        if (folder / SAMPLES).exists():
            raise UsageError(
                f"{folder} holds {SAMPLES} without {RUN}: name another folder with --out"
            )
        return
    for name, was, now in _differences(before["config"], identity):
        raise UsageError(
            f"{folder} holds a run with {name}={was!r}, not {now!r}: name another folder with "
            "--out, or give the options of that run"
        )


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Names, also inside of values that are mappings, with what was and what is."""
    for name, value in now.items():
        was = before.get(name)
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            both = {**dict.fromkeys(was), **value}
            yield from ((f"{name}.{one}", *rest) for one, *rest in _differences(was, both))
        elif was != value:
            yield name, was, value


def digest(identity: Mapping[str, Any]) -> str:
    """A hash of the options that all lines of a folder share: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
