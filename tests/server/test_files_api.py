"""The official client uploads, asks about and deletes files."""

import openai
import pytest
from served import chat, running, text

pytest_plugins = ["server_fixtures"]


@pytest.fixture(scope="module")
def client(tiny_qa):
    with running(tiny_qa) as served:
        yield served.client()


def upload(client, path, **more):
    return client.files.create(file=path, purpose="user_data", **more)


def test_a_file_is_uploaded_once_and_asked_about_by_its_id(client, clip_path):
    stored = upload(client, clip_path)
    assert (stored.filename, stored.bytes) == (clip_path.name, clip_path.stat().st_size)
    parts = (
        {"type": "video_url", "video_url": {"url": stored.id}},
        {"type": "file", "file": {"file_id": stored.id}},
    )
    for part in parts:
        body = chat(part, text("What?"), max_tokens=2)
        reply = client.chat.completions.create(**body)
        assert reply.usage.media[0]["frames"] == 8
    assert reply.usage.cached_tokens > 0  # the same content, whatever it is called
    assert client.files.content(stored.id).read() == clip_path.read_bytes()
    assert client.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.chat.completions.create(**body)


def test_files_are_listed_page_by_page_the_latest_first(client, clip_path):
    expires = {"anchor": "created_at", "seconds": 3600}
    stored = [upload(client, clip_path, expires_after=expires) for _ in range(3)]
    assert stored[0].expires_at == stored[0].created_at + 3600
    listed = [one.id for one in client.files.list(limit=2)]  # which asks for the next page
    assert sorted(listed) == sorted(one.id for one in stored)
    assert client.files.retrieve(listed[0]).id == listed[0]
    for name in listed:
        client.files.delete(name)
    assert client.files.list().data == []


def test_a_wrong_field_of_a_list_is_told_as_other_errors_are(client):
    with pytest.raises(openai.BadRequestError, match="limit: ") as refused:
        client.files.list(limit=0)
    assert refused.value.param == "limit"
