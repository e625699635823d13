import os
from pathlib import Path

import pytest

from videonsa.errors import ModelError, UsageError
from videonsa.parsing import MOST_BYTES, read_json_object


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
