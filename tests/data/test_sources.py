"""Folders and files to a stream of records with stable ids."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from videonsa.data.build import open_sources
from videonsa.data.reasons import DropError, Reason
from videonsa.data.records import Record
from videonsa.data.sources import find_annotations
from videonsa.errors import UsageError


def row(video: str = "a.mp4", said: str = "What?", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{said}"}, {"from": "gpt", "value": "Yes."}]
    return {"conversations": turns, "video": video} | more


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), "utf-8")
    return path


def entries_of(*sources: Path, roots: tuple[Path, ...] = ()) -> list[Any]:
    files, _ = find_annotations(sources, roots=roots)
    return [entry for file in files for entry in file.entries()]


def test_folder_gives_the_annotations_in_it_and_in_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "part/b.json", row("x/b.mp4"))
    write(tmp_path / "part/a.json", row("x/a.mp4", data_source="named"))
    write(tmp_path / "top.jsonl", row("c.mp4"))
    write(tmp_path / "part/x/deep.json", row("d.mp4"))
    write(tmp_path / "part/other.json", {"question": 1})
    (tmp_path / "part/broken.json").write_bytes(b'["\xff"')
    files, notes = find_annotations([tmp_path])
    entries = [entry for file in files for entry in file.entries()]
    assert [entry.found.media[0].path for entry in entries] == [
        str(tmp_path / name) for name in ("part/x/a.mp4", "part/x/b.mp4", "c.mp4")
    ]
    assert [entry.source for entry in entries] == ["named", "part", tmp_path.name]
    assert sorted(note.split(": ")[0] for note in notes) == [
        str(tmp_path / "part/broken.json"),
        str(tmp_path / "part/other.json"),
    ]
    assert "its keys are question: want 'conversations'" in " ".join(notes)


def test_a_file_that_is_met_again_is_read_once_and_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "data/a.json", row())
    (tmp_path / "data/itself").symlink_to(tmp_path / "data")
    (tmp_path / "data/loop").symlink_to("loop")
    (tmp_path / "data/loop.json").symlink_to("loop.json")
    (tmp_path / "data/b.json").symlink_to("a.json")
    again = tmp_path / "data/../data/a.json"
    files, notes = find_annotations([tmp_path / "data", path, again])
    assert [file.path for file in files] == [path]
    named = [tmp_path / "data/b.json", tmp_path / "data/itself/a.json"]
    named += [tmp_path / "data/itself/b.json", again]
    assert [note for note in notes if "loop" not in note] == [
        f"{other}: passed over: it is {path}, which is read" for other in named
    ]
    assert sum("loop.json: passed over" in note for note in notes) == 2


def test_a_pipe_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.json", row())
    os.mkfifo(tmp_path / "b.json")
    assert "b.json: cannot be read: it is not a regular file" in find_annotations([tmp_path])[1][0]
    with pytest.raises(UsageError, match="not a regular file"):
        find_annotations([tmp_path / "b.json"])


def test_a_path_that_is_not_unicode_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", row())
    (entry,) = entries_of(path, roots=(tmp_path / "\udcff",))
    assert entry.found.reason == Reason.BAD_ROW
    path.with_name("b\udcff.json").write_bytes(path.read_bytes())
    assert find_annotations([tmp_path])[1][0].endswith("its path is not valid Unicode: rename it")


@pytest.mark.parametrize("depth", range(150, 1100, 50))
def test_rows_of_any_depth_are_kept_or_dropped(tmp_path: Path, depth: int) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps(row()) + "\n" + '{"a": ' + "[" * depth + "]" * depth + "}\n"
    )
    _, entry = entries_of(tmp_path / "a.jsonl")
    assert entry.found.reason == Reason.BAD_ROW


def test_ids_are_stable_and_tell_rows_apart(tmp_path: Path) -> None:
    first = write(tmp_path / "a/train.json", row(), row(said="Who?"), row())
    second = write(tmp_path / "b/train.json", row())
    ids = [entry.id for entry in entries_of(first, second)]
    assert len(set(ids)) == 4
    assert [name.rsplit("-", 1)[0] for name in ids] == [
        *(f"a/train.json#{index}" for index in range(3)),
        "b/train.json#0",
    ]
    assert ids == [entry.id for entry in entries_of(first, second)]
    moved = write(tmp_path / "elsewhere/a/train.json", row())
    assert entries_of(moved)[0].id == ids[0]


def test_paths_are_looked_for_in_roots_then_beside_then_above(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data/part/a.json", *(row(name) for name in "pqrs"), row("/abs/./v.mp4")
    )
    for place in ("videos/p", "data/part/p", "data/part/q", "data/r"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    found = [entry.found.media[0].path for entry in entries_of(path, roots=(tmp_path / "videos",))]
    assert found == [
        *(str(tmp_path / place) for place in ("videos/p", "data/part/q", "data/r", "videos/s")),
        "/abs/v.mp4",
    ]


def test_addresses_are_dropped_unless_they_are_files(tmp_path: Path) -> None:
    names = ("https://example.org/a.mp4", "data:video/mp4;base64,AA", "file:///a%20b.mp4")
    path = write(tmp_path / "a.json", *(row(name) for name in names))
    remote, data, local = (entry.found for entry in entries_of(path))
    assert isinstance(remote, DropError)
    assert remote.reason == data.reason == Reason.REMOTE
    assert local.media[0].path == "/a b.mp4"


def test_bad_rows_are_entries_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    unicode = json.dumps(row(said="\ud83d"))
    lines = [json.dumps(row()), "{", "[]", unicode, json.dumps(row() | {"conversations": [{}]})]
    unanswered = row()
    del unanswered["conversations"][1]
    path.write_text("\n".join([*lines, json.dumps(unanswered)]))
    good, *bad = (entry.found for entry in entries_of(path))
    assert isinstance(good, Record)
    assert [error.reason for error in bad] == [
        *[Reason.BAD_ROW] * 3,
        Reason.BAD_TURNS,
        Reason.BAD_TURNS,
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "it has no rows"),
        ("[]", "it has no rows"),
        ("text", "not JSON"),
        ('[{"a": 1}]', "its keys are a"),
        ("[3]", "it is int, not an object"),
        ('["', "cannot be read behind row 0"),
    ],
)
def test_file_of_no_known_format_is_refused_in_one_line(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="no annotations that can be read") as caught:
        find_annotations([path])
    assert problem in str(caught.value)
    with pytest.raises(UsageError, match="1 JSON files, none of them of a known format"):
        find_annotations([tmp_path])


def test_absent_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: no such file"):
        open_sources([str(tmp_path / "absent.json")])


def test_rendered_videos_are_a_source() -> None:
    (source,), _ = open_sources(["synthetic:count=3,frames=128,first=5"])
    entries = list(source.entries())
    assert [entry.id.rsplit("#")[1] for entry in entries] == ["5", "6", "7"]
    assert all(len(entry.found.turns) == 18 and entry.found.videos[0].script for entry in entries)
    (again,) = open_sources([source.name]).sources
    assert again.name == source.name
    assert list(again.entries()) == entries


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("synthetic:", "'' cannot be read"),
        ("synthetic:count=2", "no frames"),
        ("synthetic:count=x,frames=128", "'count=x' cannot be read"),
        ("synthetic:count=2,frames=128,count=3", "'count=3' cannot be read"),
        ("synthetic:count=0,frames=128", "want at least 1 video"),
        (f"synthetic:count={10**13},frames=128", "at most 10000000"),
        (f"synthetic:count={10**22},frames=128", "cannot be read"),
        (f"synthetic:count=1,frames={10**14}", "at most 4194304"),
        (f"synthetic:count=1,frames=128,size={28 * 10**9}", "at most 2016"),
        ("synthetic:count=\u0661,frames=128", "cannot be read"),
        ("synthetic:count=2,frames=7", "want an even number"),
        ("synthetic:count=2,frames=128,difficulty=odd", "difficulty='odd'"),
    ],
)
def test_rendered_videos_that_cannot_be_made_are_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        open_sources([text])
