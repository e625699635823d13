"""JSON files row by row: arrays and lines, whatever the size of the chunks."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videonsa.data import jsonfiles
from videonsa.data.jsonfiles import BadRow, read_rows
from videonsa.errors import UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(VALUES, max_size=5),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
def test_arrays_are_read_as_json_reads_them(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[object],
    chunk: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass" if ascii_only else "replace"))
    expected = json.loads(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonfiles, "CHUNK_BYTES", chunk)
        assert list(read_rows(path)) == expected


@given(rows=st.lists(st.dictionaries(st.text(max_size=5), VALUES), max_size=5))
def test_lines_are_read_as_json_reads_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    assert list(read_rows(path)) == rows


def test_byte_order_mark_and_white_space_before_the_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'\xef\xbb\xbf \r\n [ {"a": 1} ,\n2]\n')
    assert list(read_rows(path)) == [{"a": 1}, 2]


def test_bad_lines_are_told_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\xff\xfe\n' + b"[" * 100_000 + b'\n{"a": 2}')
    rows = list(read_rows(path))
    assert [row for row in rows if not isinstance(row, BadRow)] == [{"a": 1}, {"a": 2}]
    assert sum(isinstance(row, BadRow) for row in rows) == 3


@pytest.mark.parametrize(
    ("text", "num_rows", "problem"),
    [
        ('[{"a": 1}, {"a": 2}', 2, "it ends"),
        ('[{"a": 1}, {"a":', 1, "Expecting value"),
        ('[{"a": 1}, ', 1, "it ends"),
        ('[{"a": 1}, {"a" 2}, {"a": 3}]', 1, "Expecting ':'"),
        ('[{"a": 1} {"a": 3}]', 1, "'{' follows a row"),
        ('[{"a": 1}, ]', 1, "Expecting value"),
        ("[", 0, "it ends"),
        ("[1, 2" + "[" * 100_000, 1, "follows a row"),
        ("[1, " + "[" * 100_000, 1, "nested too deep"),
    ],
)
def test_broken_arrays_give_their_rows_and_then_an_error(
    tmp_path: Path, text: str, num_rows: int, problem: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    rows = []
    with pytest.raises(UsageError, match="cannot be read behind row") as caught:
        rows.extend(read_rows(path))
    assert f"row {num_rows} (" in str(caught.value) or problem == "follows a row"
    assert problem in str(caught.value)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('["Größe"]'.encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        list(read_rows(path))


def test_absent_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: no such file"):
        list(read_rows(tmp_path / "rows.json"))


def test_row_that_is_not_json_is_told_without_reading_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonfiles, "CHUNK_BYTES", 64)
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"b" 2}, ' + " " * 10_000 + "]")
    read = []
    more = jsonfiles._Text.more
    monkeypatch.setattr(jsonfiles._Text, "more", lambda text: (read.append(1), more(text))[1])
    with pytest.raises(UsageError, match="Expecting ':'"):
        list(read_rows(path))
    assert len(read) == 1


@pytest.mark.parametrize("text", ["[{}, %s]", "{}\n%s\n"], ids=["array", "lines"])
def test_a_number_of_too_many_digits_is_a_bad_row_or_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text % ("9" * 10_000))
    if text.startswith("["):
        with pytest.raises(UsageError, match=r"behind row 1 \(Exceeds the limit"):
            list(read_rows(path))
    else:
        first, second = read_rows(path)
        assert first == {}
        assert "digits" in second.problem
