"""What ends a request early: keys, limits, clients that leave, a server that stops."""

import asyncio
import json
import socket
import threading
from types import SimpleNamespace

import openai
import pytest
from served import chat, data_url, running, send_and_leave, text, video, wait_until

from videonsa.inference.answer import AnswerStream
from videonsa.server import bodies
from videonsa.server.app import _Stream
from videonsa.server.errors import RefusedRequest
from videonsa.server.jobs import Piece

pytest_plugins = ["server_fixtures"]

LONG = {"max_tokens": 1500, "stream": True}
"""An answer of seconds: the weights are random, and seldom end one."""


@pytest.fixture(scope="module")
def served(tiny_qa, clip_path):
    limits = {"most_requests": 2, "most_body": 10_000, "api_key": "sesame"}
    with running(tiny_qa, folder=clip_path.parent, **limits) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    return served.client(api_key="sesame")


def is_idle(served):
    thread = served.front.thread
    return (served.front.num_requests, thread.num_waiting, thread.num_running) == (0, 0, 0)


def question(clip_path, words="What?", **more):
    return chat(video(clip_path), text(words), **{"max_tokens": 2} | more)


def test_a_request_without_the_key_is_refused_before_its_body_is_read(served, clip_path):
    for key in ("", "sesam", "sesame2", "Sesame"):
        with pytest.raises(openai.AuthenticationError) as refused:
            served.client(api_key=key or "x").chat.completions.create(**question(clip_path))
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
    status, told, _ = served.post(b"{" * 10**6, headers={"Authorization": "Bearer x"})
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")


def test_health_and_metrics_need_no_key_and_count(served, client, clip_path):
    health = json.loads(served.get("/health"))
    assert health["status"] == "ok" and health["requests"] == 0
    client.chat.completions.create(**question(clip_path))
    lines = served.get("/metrics").decode().splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(counts['videonsa_requests_total{outcome="answered"}']) >= 1
    assert float(counts["videonsa_answer_tokens_total"]) >= 2
    assert float(counts["videonsa_requests_under_way"]) == 0


def test_a_full_server_says_when_to_try_again(served, client, clip_path):
    streams = [client.chat.completions.create(**question(clip_path, **LONG))]
    next(iter(streams[0]))
    waiting = threading.Thread(target=lambda: client.chat.completions.create(**question(clip_path)))
    waiting.start()
    assert wait_until(lambda: served.front.num_requests == 2)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**question(clip_path))
    assert int(refused.value.response.headers["retry-after"]) >= 1
    streams[0].close()
    waiting.join(20)
    assert wait_until(lambda: is_idle(served))


def test_a_client_that_leaves_frees_its_place_long_before_its_answer_would_end(
    served, clip_path, monkeypatch
):
    steps, step = [], AnswerStream.step
    monkeypatch.setattr(AnswerStream, "step", lambda self: (steps.append(self), step(self))[1])
    send_and_leave(served.port, question(clip_path, **LONG), key="sesame")
    assert wait_until(lambda: is_idle(served))
    assert 0 < len(steps) < 700
    whole = question(clip_path, max_tokens=1500)
    for path in ("/v1/chat/completions", "/v1/videonsa/look"):
        steps.clear()
        send_and_leave(served.port, whole, key="sesame", until=lambda: steps, path=path)
        assert wait_until(lambda: is_idle(served))
        assert 0 < len(steps) < 700


def test_a_client_that_leaves_while_it_waits_is_not_answered(served, client, clip_path):
    stream = client.chat.completions.create(**question(clip_path, **LONG))
    next(iter(stream))
    thread, other = served.front.thread, question(clip_path, "Who?")
    send_and_leave(served.port, other, key="sesame", until=lambda: thread.num_waiting == 1)
    assert wait_until(lambda: thread.num_waiting == 0)
    assert thread.num_running == 1
    stream.close()
    assert wait_until(lambda: is_idle(served))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"frequency": 1}, "frequency"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": []}, "messages"),
        ({"fps": 2, "mm_processor_kwargs": {"fps": 1}}, "mm_processor_kwargs"),
        ({"fps": -1}, None),
        ({"top_p": 2}, None),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(served, clip_path, change, param):
    status, told, _ = served.post(
        question(clip_path) | change, headers={"Authorization": "Bearer sesame"}
    )
    assert status == 400 and told["error"]["param"] == param
    (name,) = list(change)[-1:]
    assert name in told["error"]["message"]


def test_what_has_no_effect_is_named_once(client, clip_path):
    reply = client.chat.completions.create(**question(clip_path), user="me", n=1)
    assert reply.usage.ignored == ["user"]


def test_a_body_is_read_as_far_as_it_may_be_long_and_deep(served):
    key = {"Authorization": "Bearer sesame"}
    status, told, _ = served.post(b" " * 10_001, headers=key)
    assert (status, told["error"]["code"]) == (413, "body_too_large")
    status, told, _ = served.post(b"[" * 9_999, headers=key)
    assert status == 400 and told["error"]["type"] == "invalid_request_error"


def test_a_request_that_takes_too_long_is_told_so_and_ends(tiny_qa, clip_path):
    with running(tiny_qa, folder=clip_path.parent, timeout=0.3) as served:
        client = served.client()
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(**question(clip_path, max_tokens=1500))
        assert refused.value.status_code == 504
        with pytest.raises(openai.APIError, match="no complete answer within"):
            list(client.chat.completions.create(**question(clip_path, **LONG)))
        assert wait_until(lambda: is_idle(served))


def test_media_that_are_not_found_in_time_are_told_so_and_leave_nothing(tiny_qa, clip_path):
    found = threading.Event()
    with running(tiny_qa, folder=clip_path.parent, timeout=0.2) as served:
        served.front.sources.info = lambda path, digest: found.wait(20)
        sent = {"type": "video_url", "video_url": {"url": data_url(clip_path)}}
        status, told, _ = served.post(chat(sent, text("What?")))
        assert (status, told["error"]["code"]) == (504, "timeout") and is_idle(served)
        found.set()
        assert wait_until(lambda: not list(served.front.sources.scratch.iterdir()))


def test_a_body_that_stops_arriving_loses_its_place(served, monkeypatch):
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.05)
    head = "Host: 127.0.0.1\r\nAuthorization: Bearer sesame\r\nContent-Length: 99\r\n\r\n"
    for path in ("chat/completions", "videonsa/plan"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            connection.sendall(f"POST /v1/{path} HTTP/1.1\r\n{head}{{".encode())
            assert connection.recv(2**16).startswith(b"HTTP/1.1 408")
        assert wait_until(lambda: is_idle(served))


def test_a_body_that_came_fast_may_not_stop_for_longer_than_others(monkeypatch):
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.05)

    async def arriving():
        yield bytes(10**8)
        await asyncio.Event().wait()

    async def read():
        request = SimpleNamespace(stream=arriving, headers={})
        async with asyncio.timeout(20):
            await bodies.read_body(request, 10**9)

    with pytest.raises(RefusedRequest, match="too slowly"):
        asyncio.run(read())


def test_a_client_that_takes_nothing_of_a_stream_is_cut_off():
    closed = []

    async def events():
        try:
            while True:
                yield Piece("word")
        finally:
            closed.append(True)

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def serve():
        given = events()
        stream = _Stream(given, SimpleNamespace(model="m"), await anext(given), seconds=0.05)
        await stream({"type": "http"}, asyncio.Event().wait, send)

    asyncio.run(serve())
    assert closed == [True]


def test_a_stop_answers_what_was_accepted_and_takes_no_more(tiny_qa, clip_path):
    with running(tiny_qa, folder=clip_path.parent) as served:
        client = served.client()
        long = LONG | {"max_tokens": 200}
        stream = iter(client.chat.completions.create(**question(clip_path, **long)))
        next(stream)
        served.server.should_exit = True
        *_, last = stream
        assert last.choices[0].finish_reason == "length" and last.usage.completion_tokens == 200
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
