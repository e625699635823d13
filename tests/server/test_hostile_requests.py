"""Requests of whoever means harm: each is refused in one line, and nothing of it stays."""

import base64
import itertools
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hostile_files import avi, png, zip_bomb
from pretended_web import pretended_web
from served import chat, running, send_and_leave, text, wait_until

from videonsa.server.media import MediaPolicy

pytest_plugins = ["server_fixtures"]

MOST_BYTES = 200_000
KEY = "sesame"


@pytest.fixture(scope="module")
def web():
    with pretended_web() as found:
        found.redirect("/to-inside", "http://inside.example/clip.mp4")
        found.redirect("/to-loop", "http://127.0.0.1:22/")
        found.redirect("/to-file", "file:///etc/passwd")
        found.redirect("/round", "/round")
        found.answers["/endless"] = 200, {}, itertools.repeat(bytes(2**16))
        found.answers["/stated"] = 200, {"Content-Length": str(10**12)}, b"x"
        found.answers["/packed"] = 200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"
        found.answers["/page"] = 200, {}, b"<!doctype html>"
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    folder = outside / "media"
    folder.mkdir()
    (outside / "secret.mp4").write_bytes(avi(3))
    (folder / "out.mp4").symlink_to(outside / "secret.mp4")
    (folder / "round.mp4").symlink_to("round.mp4")
    (folder / "environ").symlink_to("/proc/self/environ")
    os.mkfifo(folder / "pipe.mp4")
    return folder


@pytest.fixture(scope="module")
def served(tiny_qa, folder, web):
    hosts = ("videos.example", "inside.example", "loop.example", "mapped.example", "partly.example")
    with running(
        tiny_qa,
        policy=MediaPolicy(folder=folder, hosts=hosts, most_bytes=MOST_BYTES),
        fetcher=web.fetcher(*hosts, most_bytes=MOST_BYTES),
        most_body=10**6,
        api_key=KEY,
        names=frozenset({"127.0.0.1"}),
    ) as found:
        yield found


def data(content, kind="video/mp4"):
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def left(served):
    """What lies in the folders of the server."""
    sources = served.front.sources
    return [*sources.scratch.iterdir(), *sources.uploads.folder.iterdir()]


def refused(served, found):
    """The code of a refusal, which is one line in OpenAI's form, and leaves nothing."""
    status, body, headers = found
    error = body["error"]
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 1100
    assert error["type"] and not {"x-evil", "set-cookie"} & {name.lower() for name in headers}
    told = json.dumps(body)
    assert "/tmp" not in told.replace(str(served.front.sources.policy.folder), "")
    assert left(served) == [] and served.front.num_requests == 0
    return status, error["code"]


URLS = {
    # Files of the server.
    "a path out of the folder": ("file:MEDIA/../secret.mp4", 403, "file_not_allowed"),
    "a path out of it, encoded": ("file:%2e%2e/secret.mp4", 403, "file_not_allowed"),
    "a path out of it, encoded twice": ("file:%252e%252e/secret.mp4", 404, "media_not_found"),
    "a link out of the folder": ("file:out.mp4", 403, "file_not_allowed"),
    "a link into /proc": ("file:environ", 403, "file_not_allowed"),
    "links in a circle": ("file:round.mp4", 404, "media_not_found"),
    "a pipe, which never ends": ("file:pipe.mp4", 403, "file_not_allowed"),
    "a folder": ("file:.", 403, "file_not_allowed"),
    "a file that is there, elsewhere": ("file:///etc/passwd", 403, "file_not_allowed"),
    "a file that is not there, elsewhere": ("file:///etc/none", 403, "file_not_allowed"),
    "a file of another machine": ("file://evil.example/x.mp4", 400, "invalid_url"),
    "a null byte": ("file:x.mp4%00.png", 400, "invalid_url"),
    "a long name": ("file:" + "x" * 5000, 404, "media_not_found"),
    "an upload's path": ("file-../../secret", 404, "file_not_found"),
    # Addresses.
    "a host that is not allowed": ("http://evil.example/x.mp4", 403, "host_not_allowed"),
    "another port of one that is": ("http://videos.example:22/x.mp4", 403, "host_not_allowed"),
    "this machine": ("http://127.0.0.1/x.mp4", 403, "host_not_allowed"),
    "this machine as a number": ("http://2130706433/x.mp4", 403, "host_not_allowed"),
    "a name of an inner network": ("http://inside.example/x", 403, "address_not_allowed"),
    "a name of this machine": ("http://loop.example/x", 403, "address_not_allowed"),
    "a cloud's metadata in IPv6": ("http://mapped.example/x", 403, "address_not_allowed"),
    "one private address of two": ("http://partly.example/x", 403, "address_not_allowed"),
    "a redirect to a private name": (
        "http://videos.example/to-inside",
        403,
        "address_not_allowed",
    ),
    "a redirect to this machine": ("http://videos.example/to-loop", 403, "host_not_allowed"),
    "a redirect to a file": ("http://videos.example/to-file", 400, "invalid_url"),
    "redirects without end": ("http://videos.example/round", 400, "unreachable_media"),
    "an endless download": ("http://videos.example/endless", 413, "media_too_large"),
    "a download stated as a terabyte": ("http://videos.example/stated", 413, "media_too_large"),
    "a packed download": ("http://videos.example/packed", 400, "unreachable_media"),
    "a page in place of a video": ("http://videos.example/page", 400, "unreadable_media"),
    "a header in an address": ("http://videos.example/\r\nX-Evil: 1", 400, "invalid_url"),
    "a password in an address": ("http://a:b@videos.example/x", 400, "invalid_url"),
    "another protocol": ("ftp://videos.example/x.mp4", 400, "unsupported_url"),
    "a protocol of FFmpeg": ("concat:/etc/passwd|/etc/group", 400, "unsupported_url"),
    # Content.
    "base64 with a hole": ("data:video/mp4;base64,AAAA*AAA", 400, "invalid_base64"),
    "base64 that is cut off": ("data:video/mp4;base64,AAAAA", 400, "invalid_base64"),
    "a data: URL without base64": ("data:video/mp4,AAAA", 400, "invalid_base64"),
    "a ZIP bomb": (data(zip_bomb()), 400, "unreadable_media"),
    "an image of 3,600 megapixels": (data(png(60_000, 60_000)), 400, "unreadable_media"),
    "a video of 10^9 frames": (data(avi(10**9)), 413, "media_too_large"),
    "a playlist of other files": (
        data(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
        400,
        "unreadable_media",
    ),
    "more than may be sent": (data(bytes(MOST_BYTES + 100)), 413, "media_too_large"),
}


@pytest.mark.parametrize("name", URLS)
def test_media_of_harmful_requests_are_refused(served, folder, name):
    url, status, code = URLS[name]
    body = chat(
        {"type": "video_url", "video_url": {"url": url.replace("MEDIA", str(folder))}},
        text("What?"),
    )
    found = served.post(body, headers={"Authorization": f"Bearer {KEY}"})
    assert refused(served, found) == (status, code)


def form(content=b"x", *, purpose="user_data", name="file", filename="x.mp4"):
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'.encode(),
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        "\r\n".encode(),
        content,
        b"\r\n--b--\r\n",
    ]
    return b"".join(parts)


FORMS = {
    "a ZIP bomb": (form(zip_bomb()), 400, "unreadable_media"),
    "a video of 10^9 frames": (form(avi(10**9)), 413, "media_too_large"),
    "more than may be sent": (form(bytes(MOST_BYTES + 1)), 413, "media_too_large"),
    "a header in the purpose": (form(avi(3), purpose="x\r\nX-Evil: 1"), 400, None),
    "a part without an end": (form(avi(3))[:-30], 400, None),
    "a field without an end": (form(bytes(5000), name="purpose"), 400, None),
    "a hundred parts": (form(avi(3)).replace(b"--b--", 100 * b"--b\r\n\r\n\r\n"), 400, None),
    "no form": (b"x" * 100, 400, None),
}


@pytest.mark.parametrize("name", FORMS)
def test_harmful_uploads_are_refused(served, name):
    content, status, code = FORMS[name]
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "multipart/form-data; boundary=b",
    }
    assert refused(served, served.post(content, "/v1/files", headers)) == (status, code)


def endless(port, path, head, piece):
    """Send a body that does not end; the answer, which comes none the less."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n{head}"
        connection.sendall(f"{lines}Transfer-Encoding: chunked\r\n\r\n".encode())
        with suppress(OSError):  # the server reads no more
            for _ in range(1000):
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        with suppress(OSError):
            return connection.recv(2**16)
    return b""


def test_an_endless_upload_and_an_endless_body_are_cut_off(served):
    kind = "Content-Type: multipart/form-data; boundary=b\r\n"
    begin = form(bytes(2**15))[: -len("\r\n--b--\r\n")]
    for path, head, piece in (
        ("/v1/files", kind, begin),
        ("/v1/chat/completions", "", b'{"messages": [' + b" " * 2**15),
    ):
        answer = endless(served.port, path, head, piece)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
        assert left(served) == [] and served.front.num_requests == 0


BODIES = {
    "nested JSON": (b'{"messages":' + b"[" * 10**5, 400),
    "a number of a million digits": (b'{"model": ' + b"9" * 9 * 10**5 + b"}", 400),
    "a million messages": (b'{"messages": [' + b"0," * 4 * 10**5 + b"0]}", 400),
    "JSON of 2 MB": (b'"' + b"x" * 2 * 10**6 + b'"', 413),
    "no UTF-8": (b'{"model": "\xff"}', 400),
    "no JSON": (b"\x1f\x8b\x08", 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_harmful_bodies_are_refused(served, name):
    content, status = BODIES[name]
    found = served.post(content, headers={"Authorization": f"Bearer {KEY}"})
    assert refused(served, found)[0] == status


HEADERS = {
    "no key": ({}, 401, "invalid_api_key"),
    "a wrong key": ({"Authorization": f"Bearer {KEY}x"}, 401, "invalid_api_key"),
    "a key in Latin-1": ({"Authorization": "Bearer \xe9"}, 401, "invalid_api_key"),
    "another site's page": (
        {"Authorization": f"Bearer {KEY}", "Origin": "http://evil.example"},
        403,
        "other_site",
    ),
    "another site's page, as browsers tell": (
        {"Authorization": f"Bearer {KEY}", "Sec-Fetch-Site": "cross-site"},
        403,
        "other_site",
    ),
    "another site's form": (
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        403,
        "other_site",
    ),
    "a name that leads here": ({"Host": "evil.example:8000"}, 403, "other_site"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_requests_of_others_are_refused(served, name):
    headers, status, code = HEADERS[name]
    found = served.post(chat(text("What?")), headers=headers)
    assert refused(served, found) == (status, code)


def test_a_name_that_would_be_a_header_is_none(served):
    path = "/v1/files/file-1%0d%0aSet-Cookie:%20a=b"
    found = served.post(b"", path + "/x", {"Authorization": f"Bearer {KEY}"})
    assert refused(served, found)[0] == 404


def test_of_requests_whose_client_leaves_nothing_stays(served):
    url = {"type": "video_url", "video_url": {"url": data(avi(3))}}
    body = chat(url, text("What?"), stream=True, max_tokens=1000)
    send_and_leave(served.port, body, key=KEY)
    content = form(bytes(MOST_BYTES // 2))
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        connection.sendall(head.encode() + content[:-1000])
        assert wait_until(lambda: list(served.front.sources.uploads.folder.iterdir()))
    folders = served.front.sources.scratch, served.front.sources.uploads.folder
    assert wait_until(lambda: not any(list(folder.iterdir()) for folder in folders))
    assert wait_until(lambda: served.front.num_requests == 0)
    assert served.front.sources.uploads.num_bytes == 0


def docs_table():
    """All that is refused, as docs/serving.md shows it."""
    found = {}
    tables = {"": URLS | HEADERS, "uploaded: ": FORMS, "as a body: ": BODIES}
    for kind, table in tables.items():
        for name, (_, status, *code) in table.items():
            found.setdefault((status, *code, None)[:2], []).append(kind + name)
    rows = [
        f"| {status}{f' `{code}`' if code else ''} | {'; '.join(names)} |"
        for (status, code), names in sorted(found.items(), key=str)
    ]
    return "\n".join(("| status, code | what comes |", "| --- | --- |", *rows))


def test_the_docs_show_this_table():
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    assert docs_table() in page.read_text()
