import base64
import hashlib
import itertools

import pytest
from pretended_web import PUBLIC, pretended_web

from videonsa.errors import UsageError
from videonsa.server.errors import Gone, RefusedRequest
from videonsa.server.fetching import check_hosts, is_public
from videonsa.server.frames import ReadHere
from videonsa.server.media import MediaPolicy, MediaSources, RequestMedia
from videonsa.server.state import open_state
from videonsa.video.sampling import VideoInfo

CONTENT = b"frames"


def described(path, **changes):
    facts = {"duration": 8.0, "num_frames": 16, "fps": 2.0, "width": 64, "height": 64}
    return VideoInfo(path=str(path), codec="h264", container="mp4", **facts | changes)


class DescribedOnly(ReadHere):
    def describe(self, path):
        return described(path)


@pytest.fixture(scope="module")
def web():
    with pretended_web() as found:
        found.answers["/clip.mp4"] = 200, {}, CONTENT
        yield found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos" / "inner").mkdir(parents=True)
    (tmp_path / "videos" / "clip.mp4").write_bytes(CONTENT)
    (tmp_path / "videos" / "a b.mp4").write_bytes(CONTENT)
    (tmp_path / "videos" / "inner" / "link.mp4").symlink_to("../clip.mp4")
    return tmp_path / "videos"


@pytest.fixture
def sources(folder, web, tmp_path):
    with open_state(tmp_path / "state") as state:
        yield MediaSources(
            MediaPolicy(folder=folder),
            state=state,
            reader=DescribedOnly(),
            fetcher=web.fetcher("videos.example", "mirror.example"),
        )


def get(sources, url, kind="video"):
    media = RequestMedia(sources)
    try:
        found = media.get(url, kind=kind, param="messages.0")
        return found, found.path.read_bytes()
    finally:
        media.close()
        assert list(sources.scratch.iterdir()) == []


def test_what_a_request_names_is_found_wherever_it_is_and_nothing_stays(sources, folder, web):
    data = "data:video/mp4;base64," + base64.b64encode(CONTENT).decode()
    whole = (folder / "a b.mp4").as_uri()
    urls = [data, whole, "file:clip.mp4", "file:inner/link.mp4", "http://videos.example/clip.mp4"]
    found = [get(sources, url) for url in urls]
    assert {content for _, content in found} == {CONTENT}
    assert len({one.digest for one, _ in found}) == 1
    assert web.network.dialled == [PUBLIC]  # the checked address, no name
    with sources.uploads.receive() as incoming:
        incoming.write(CONTENT)
        name = incoming.keep("clip.mp4", {"purpose": "user_data"}).id
    assert get(sources, name)[0].digest == get(sources, name, kind="file")[0].digest
    assert get(sources, name)[0].digest == found[0][0].digest


def test_a_redirect_to_a_host_that_is_allowed_is_followed(sources, web):
    web.redirect("/moved", "http://mirror.example/clip.mp4")
    assert get(sources, "http://videos.example/moved")[1] == CONTENT
    assert web.asked[-2:] == ["videos.example/moved", "mirror.example/clip.mp4"]


def test_a_file_is_read_for_its_digest_only_where_it_changed(sources, folder, monkeypatch):
    path = folder / "clip.mp4"
    first = sources.digest(path)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert sources.digest(path) == first
    path.write_bytes(b"others")
    assert sources.digest(path) != first


def test_a_download_ends_when_nobody_waits_or_time_is_up(sources, web):
    web.answers["/endless"] = 200, {}, itertools.repeat(b"x")
    media = RequestMedia(sources)
    media.stop()
    with pytest.raises(Gone):
        media.get("http://videos.example/endless", kind="video", param="m")
    media.close()
    path = sources.scratch / "x"
    for seconds, gone, why in (5.0, True, "went away"), (0.05, False, r"not there after|timed out"):
        fetcher = web.fetcher("videos.example", seconds=seconds)
        with pytest.raises(RefusedRequest, match=why):
            fetcher.fetch(
                "http://videos.example/endless",
                path,
                param="m",
                most_bytes=2**40,
                stopped=lambda gone=gone: gone,
            )
    path.unlink()


def test_downloads_of_one_request_have_a_size_together(sources, web):
    media = RequestMedia(sources)
    for number in range(3):
        web.answers[f"/{number}"] = 200, {}, bytes(2**19)
    for number in range(2):
        media.get(f"http://videos.example/{number}", kind="video", param="m")
    with pytest.raises(RefusedRequest, match="larger than 0 bytes") as refused:
        media.get("http://videos.example/2", kind="video", param="m")
    assert refused.value.status == 413
    media.close()
    assert list(sources.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"duration": 1e9}, 413, "1,000,000,000 s"),
        ({"num_frames": 10**9}, 413, "1,000,000,000 frames"),
        ({"width": 60000, "height": 60000}, 413, "3,600,000,000 pixels a picture"),
        ({"duration": float("nan")}, 413, "nan s"),
        ({}, 400, "send it as video_url"),
    ],
)
def test_what_a_header_states_is_held_against_the_limits(changes, status, says):
    info = described("clip.mp4", **changes)
    with pytest.raises(RefusedRequest, match=says) as refused:
        MediaPolicy().check(info, kind="video" if changes else "image", param="m")
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:2800:21f:cb07::1", True),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_public_addresses_are_those_of_the_internet_in_each_spelling(address, public):
    assert is_public(address) is public


def test_a_policy_refuses_hosts_and_folders_that_are_none(tmp_path):
    assert check_hosts(["Videos.Example", "x.example:8080"]) == {"videos.example", "x.example:8080"}
    for wrong in ("http://x.example", "x.example/", "*", "a:b", ""):
        with pytest.raises(UsageError, match="want a name"):
            MediaPolicy(hosts=(wrong,))
    with pytest.raises(UsageError, match="no such folder"):
        MediaPolicy(folder=tmp_path / "none")
