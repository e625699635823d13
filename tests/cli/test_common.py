"""Files that are written atomically."""

import os

import pytest

from videonsa.cli.common import write_output
from videonsa.errors import UsageError


def test_a_file_is_written_whole_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "picture.png"
    write_output(path, b"one")
    write_output(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["picture.png"]


def test_a_folder_that_cannot_be_made_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"cannot write .*: name a folder that you may write to"):
        write_output(tmp_path / "file" / "picture.png", b"one")
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_midway_leaves_no_partial_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        write_output(tmp_path / "taken", b"one")
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="permission denied"):
        write_output(tmp_path / "picture.png", b"one")
