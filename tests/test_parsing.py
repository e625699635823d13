import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from videonsa.errors import ModelError, UsageError
from videonsa.parsing import MOST_BYTES, parse_json, read_json_object, typed


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"\xff", "utf"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "digits"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "nested"),
    ],
)
def test_what_holds_no_json_object_is_one_error(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=told) as caught:
        read_json_object(path, error=ModelError, remedy="download it again")
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("download it again")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UsageError, match="not a regular file"):
        read_json_object(tmp_path / "run.json")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UsageError, match="at most"):
        read_json_object(path)


def test_a_folder_and_an_absent_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UsageError, match="not a regular file"):
        read_json_object(tmp_path / "a.json")
    with pytest.raises(UsageError, match="no such file"):
        read_json_object(tmp_path / "b.json")


@dataclass(frozen=True)
class Thing:
    name: Literal["a", "b"]
    size: float = 0.0
    parts: tuple[int, ...] = ()
    pair: tuple[int, str] | None = None
    more: dict[str, Any] = field(default_factory=dict)


def test_json_becomes_the_types_that_a_dataclass_states() -> None:
    value = {"name": "b", "size": 2, "parts": [1, 2], "pair": [3, "x"], "more": {"y": [None]}}
    thing = typed(Thing, value)
    assert thing == Thing("b", 2.0, (1, 2), (3, "x"), {"y": [None]})
    assert type(thing.size) is float
    assert typed(list[Thing], [{"name": "a"}]) == [Thing("a")]


@pytest.mark.parametrize(
    "value",
    [
        *([], None, "a", {}, {"name": "c"}, {"name": "a", "other": 1}),
        *({"name": "a", "size": wrong} for wrong in (True, "1", float("nan"), 10**400, 2**70)),
        *({"name": "a", "parts": wrong} for wrong in (1, [1.0], [True], [2**63], {})),
        *({"name": "a", "pair": wrong} for wrong in ([1], [1, "x", 2], ["x", 1])),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_of_other_types_is_an_error(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        typed(Thing, value)


def test_nan_is_refused_where_it_is_not_allowed() -> None:
    assert parse_json("[NaN]")
    with pytest.raises(ValueError, match="NaN is no number of JSON"):
        parse_json("[NaN]", allow_nan=False)
