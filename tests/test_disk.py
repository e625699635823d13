import os
import subprocess
import sys
from pathlib import Path

import pytest

from videonsa.disk import (
    HOLDER,
    LOCK,
    check_room,
    new_folder,
    partial_file,
    place_folder,
    sole_writer,
    write_atomic,
)
from videonsa.errors import UsageError

_HOLD = """
import sys
from pathlib import Path
from videonsa.disk import sole_writer
with sole_writer(Path(sys.argv[1]), work="a test"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_written_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").read_text() == "text"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_a_failed_writer_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", b"before")
    with pytest.raises(ZeroDivisionError), partial_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert (tmp_path / "a.txt").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_file_have_partial_files_of_their_own(tmp_path: Path) -> None:
    with partial_file(tmp_path / "a") as first, partial_file(tmp_path / "a") as second:
        assert first != second


def test_a_folder_has_one_writer_who_is_named(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    wanted = rf"a test \(process {other.pid} on .*\): wait for it"
    with pytest.raises(UsageError, match=wanted), sole_writer(tmp_path, work="mine"):
        pass
    assert (tmp_path / HOLDER).exists(), "the one who came second must not harm the first"
    other.kill()
    other.communicate()
    with sole_writer(tmp_path, work="mine"):
        assert f'"process": {os.getpid()}' in (tmp_path / HOLDER).read_text()
    assert not (tmp_path / HOLDER).exists()


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_atomic(tmp_path / "pipe", b"content")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exchanges: bool
) -> None:
    if not exchanges:  # as where Linux is not
        monkeypatch.setattr("videonsa.disk._exchange", lambda *_: False)
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    place_folder(tmp_path / "new", tmp_path / "place")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "place",
        "place/new",
    ]


def test_a_folder_that_cannot_be_placed_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr("videonsa.disk._exchange", lambda *_: False)  # as where Linux is not
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        place_folder(tmp_path / "new", tmp_path / "place")
    assert (tmp_path / "place" / "place").exists()


def test_there_is_no_moment_without_a_folder_while_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("two steps"))
    place_folder(tmp_path / "new", tmp_path / "place")
    assert (tmp_path / "place" / "new").exists()


def test_a_new_folder_begins_empty_and_takes_its_place_whole(tmp_path: Path) -> None:
    left = tmp_path / ".a.partial"
    left.mkdir()
    (left / "of a killed writer").touch()
    with new_folder(tmp_path / "a", work="a test") as folder:
        assert {path.name for path in folder.iterdir()} == {LOCK, HOLDER}
        (folder / "mine").touch()
        assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_folder_that_fails_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a", work="a test"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_room_is_told_in_gigabytes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^it needs 1000000000\.00 GB but .* GB are free: wait$"):
        check_room("it", tmp_path, 10**18, remedy="wait")
    check_room("it", tmp_path, 1, remedy="wait")
