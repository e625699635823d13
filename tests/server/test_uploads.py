import json
import os

import pytest

from videonsa.server.errors import RefusedRequest
from videonsa.server.uploads import Uploads

PURPOSE = {"purpose": "user_data"}


def store(uploads, content=b"12345678", name="clip.mp4", fields=PURPOSE):
    with uploads.receive() as incoming:
        incoming.write(content)
        return incoming.keep(name, fields)


def make(folder):
    folder.mkdir(exist_ok=True)
    return Uploads(folder, most_bytes=16, budget=20)


def test_files_are_there_for_the_next_server_and_half_received_ones_are_not(tmp_path):
    folder = tmp_path / "files"
    uploads = make(folder)
    stored = store(uploads)
    (folder / "receiving-x").mkdir()  # by a server that was killed
    (folder / "file-0123456789abcdef01234567").mkdir()  # cut off, as if by a full disk
    (folder / "README").mkdir()
    again = make(folder)
    assert again.files() == [stored] and again.num_bytes == 8
    assert again.path(stored).read_bytes() == b"12345678"
    assert sorted(os.listdir(folder)) == sorted(["README", stored.id])
    assert again.delete(stored.id) and not again.delete(stored.id)
    assert os.listdir(folder) == ["README"] and again.num_bytes == 0


@pytest.mark.parametrize(
    ("content", "fields", "status", "code"),
    [
        (b"x" * 17, PURPOSE, 413, "media_too_large"),
        (b"x" * 13, PURPOSE, 413, "storage_full"),
        (b"x", {}, 400, None),
        (b"x", {"purpose": "../x"}, 400, None),
        (b"x", PURPOSE | {"more": "1"}, 400, None),
        (b"x", PURPOSE | {"expires_after[seconds]": "5"}, 400, None),
    ],
)
def test_of_what_is_refused_nothing_stays(tmp_path, content, fields, status, code):
    uploads = make(tmp_path / "files")
    store(uploads)
    with pytest.raises(RefusedRequest) as refused:
        store(uploads, content, fields=fields)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert len(os.listdir(tmp_path / "files")) == 1 and uploads.num_bytes == 8


def test_a_file_that_expires_is_gone_and_its_room_is_free(tmp_path, monkeypatch):
    uploads = make(tmp_path / "files")
    fields = PURPOSE | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    stored = store(uploads, fields=fields)
    assert uploads.get(stored.id) == stored
    monkeypatch.setattr("time.time", lambda: stored.created_at + 3601)
    assert uploads.get(stored.id) is None and uploads.num_bytes == 0
    assert os.listdir(tmp_path / "files") == []


def test_a_name_is_shown_and_never_used(tmp_path):
    uploads = make(tmp_path / "files")
    stored = store(uploads, name="../../etc/a\r\nSet-Cookie: x.mp4" + "y" * 500)
    assert stored.filename.startswith("aSet-Cookie: x.mp4y") and len(stored.filename) == 255
    assert os.listdir(tmp_path / "files") == [stored.id]
    assert json.loads(json.dumps(stored.to_json()))["object"] == "file"
