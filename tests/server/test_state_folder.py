import os
import tempfile
from pathlib import Path

from videonsa.disk import LOCK
from videonsa.server.state import own_folder


def test_a_folder_goes_at_the_end_and_those_of_killed_servers_at_the_next_start(tmp_path):
    with own_folder(tmp_path) as folder:
        prefix = folder.name[:-8]
    killed, kept = tmp_path / f"{prefix}killed", tmp_path / "videonsa-serve"
    for folder in (killed, kept):
        folder.mkdir()
        (folder / LOCK).touch()
        (folder / "content").write_bytes(b"x")
    with own_folder(tmp_path) as held, own_folder(tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {kept, held, folder}
        (folder / "content").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == [kept]


def test_a_folder_that_is_not_locked_yet_is_not_taken_for_that_of_a_killed_server(
    tmp_path, monkeypatch
):
    make = tempfile.mkdtemp

    def make_beside_one_that_starts(**where):
        new = Path(make(**where))
        monkeypatch.undo()
        (new / LOCK).touch()  # opened, not yet locked
        with own_folder(tmp_path):
            assert new.exists()
        return str(new)

    monkeypatch.setattr(tempfile, "mkdtemp", make_beside_one_that_starts)
    with own_folder(tmp_path) as folder:
        assert folder.exists()


def test_folders_of_another_user_stay(tmp_path, monkeypatch):
    with own_folder(tmp_path) as folder:
        others = folder.with_name(f"{folder.name[:-8]}others")
        others.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: others.stat().st_uid + 1)
        with own_folder(tmp_path):
            assert others.exists()
