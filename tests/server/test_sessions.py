"""What is kept of earlier questions, and where."""

from dataclasses import replace

import pytest

import videonsa
from videonsa.inference.messages import Message, VideoPart
from videonsa.server.frames import ReadHere
from videonsa.server.sessions import Sessions, Shown
from videonsa.server.settings import KeepSettings

pytest_plugins = ["server_fixtures"]


class Chats:
    """Asks about videos by their names, and counts how often one is read."""

    def __init__(self, qa, clip_path, keep):
        self.clip_path, self.opened, reader = clip_path, [], ReadHere()

        def read(media, sampling):
            self.opened.append(media)
            return reader.open(media, sampling)

        self.sampling, self.sessions = qa.sampling, Sessions(qa, keep, read=read)

    def ask(self, *names, question="What moves?"):
        """(text, where it came from, tokens that were read before)."""
        parts = [VideoPart(source=self.clip_path, key=name) for name in names]
        messages = Message("system", ("Be brief.",)), Message("user", (*parts, question))
        shown = [Shown(name, self.sampling) for name in names]
        key = ((0, "system"), "Be brief.", (1, "user"), *shown)
        lent = self.sessions.lend(messages, key)
        self.asked_of = len(lent.conversation.session.clips)
        answer = lent.conversation.session.ask(question, max_new_tokens=5)
        self.sessions.settle()
        return answer.text, lent.came_from, lent.num_cached

    def held(self):
        return {tier: self.sessions.held(tier)[0] for tier in ("device", "host", "disk")}


@pytest.fixture
def chats(tiny_qa, clip_path, tmp_path):
    def begin(**keep):
        folders = {name: tmp_path / name for name in ("host", "disk")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        settings = KeepSettings(host_folder=folders["host"], disk_folder=folders["disk"], **keep)
        return Chats(tiny_qa, clip_path, settings)

    return begin


def test_a_video_is_read_once_and_longer_chats_go_on_from_shorter_ones(chats):
    kept = chats(device_bytes=10**9)
    first = kept.ask("a")
    assert first[1:] == ("new", 0)
    text, came_from, num_cached = kept.ask("a")
    assert (text, came_from) == (first[0], "device") and num_cached > 20
    assert kept.ask("a", "b")[1:] == ("device", num_cached)
    assert len(kept.opened) == 2 and kept.held()["device"] == 1


def test_what_exceeds_the_device_goes_to_the_host_then_to_the_disk_and_comes_back(chats, tmp_path):
    kept = chats(device_bytes=1, host_bytes=10**5, disk_bytes=10**9)
    texts = {name: kept.ask(name)[0] for name in "abc"}
    assert kept.held()["device"] == 1 and sum(kept.held().values()) == 3
    for name in "abcab":
        text, came_from, num_cached = kept.ask(name)
        assert text == texts[name] and came_from in ("host", "disk") and num_cached > 20
    assert len(kept.opened) == 3
    kept.sessions.close()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_has_no_budget_is_forgotten_the_least_recent_first(chats):
    kept = chats(device_bytes=10**9)
    kept.ask("a")
    one = kept.sessions.held("device")[1]
    kept = chats(device_bytes=2 * one + 1)
    for name in ("a", "b", "a", "c"):
        kept.ask(name)
    assert kept.held() == {"device": 2, "host": 0, "disk": 0}
    assert [kept.ask(name)[1] for name in ("a", "c", "b")] == ["device", "device", "new"]


def test_a_stored_session_that_is_damaged_is_read_again(chats, tmp_path):
    kept = chats(device_bytes=1, disk_bytes=10**9)
    text = kept.ask("a")[0]
    kept.ask("b")
    for file in tmp_path.rglob("layer-*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    assert kept.ask("a") == (text, "new", 0)
    assert len(kept.opened) == 3


def test_media_that_cannot_be_read_leave_what_was_kept(chats, tmp_path):
    kept = chats(device_bytes=10**9)
    text = kept.ask("a")[0]
    good, kept.clip_path = kept.clip_path, tmp_path / "none.mp4"
    with pytest.raises(videonsa.VideoError, match="no such file"):
        kept.ask("a", "b")
    kept.clip_path = good
    assert kept.ask("a")[:2] == (text, "device")


def test_a_session_in_use_is_not_moved_to_make_room_for_what_it_reads(chats):
    kept = chats(device_bytes=1, host_bytes=10**9)
    kept.ask("a")
    assert kept.ask("a", "b")[1] == "device" and kept.held()["device"] == 1
    both = kept.sessions.held("device")[1]
    kept.ask("c")
    assert kept.sessions.held("host") == (1, both)
    assert kept.ask("a", "b")[1] == "host" and kept.asked_of == 2
    assert len(kept.opened) == 3


def test_a_session_that_was_moved_keeps_its_size_where_what_came_after_it_fails(chats, tmp_path):
    kept = chats(device_bytes=1, host_bytes=10**9)
    kept.ask("a")
    one = kept.sessions.held("device")[1]
    opened = kept.sessions._read
    kept.sessions._read = lambda media, sampling: replace(
        opened(media, sampling), frames=broken_frames()
    )
    with pytest.raises(videonsa.VideoError, match="broken"):
        kept.ask("b")
    kept.sessions.settle()
    assert kept.sessions.held("host") == (1, one)


def broken_frames():
    raise videonsa.VideoError("broken")
    yield
