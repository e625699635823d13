"""The official client drives a server with the embedded model."""

import json
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from served import QUESTIONS, chat, data_url, running, text, video, wait_until

import videonsa
from videonsa.server.asked import read_request
from videonsa.server.frames import ReadHere
from videonsa.server.jobs import Failed, Job
from videonsa.server.media import RequestMedia
from videonsa.server.model_thread import ModelThread
from videonsa.server.sessions import Sessions
from videonsa.server.settings import KeepSettings

pytest_plugins = ["server_fixtures"]


@pytest.fixture(scope="module")
def answers(qa, clip):
    """What the engine itself answers."""
    session = qa.open(clip)
    return [session.ask(question, fresh=True).text for question in QUESTIONS]


@pytest.fixture(scope="module")
def served(qa, clip, answers):
    with running(qa, folder=clip.parent) as found:
        yield found


def test_answers_are_those_of_the_engine_and_the_video_is_read_once(served, clip, answers):
    client = served.client()
    cached = []
    for question, wanted in zip(QUESTIONS, answers, strict=True):
        body = chat(video(clip), text(question))
        reply = client.chat.completions.create(**body)
        assert reply.choices[0].message.content == wanted
        assert reply.choices[0].finish_reason == "stop"
        cached.append(reply.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0 and all(number > 0 for number in cached[1:])
    assert reply.usage.session == "device" and reply.usage.method == "nsa"
    (media,) = reply.usage.media
    assert len(media["seconds"]) == media["frames"] and media["sampling"]["fps"] == 2.0


def test_a_stream_gives_the_same_words_and_the_usage_at_its_end(served, clip, answers):
    body = chat(video(clip), text(QUESTIONS[-1]), stream=True)
    chunks = list(served.client().chat.completions.create(**body))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answers[-1]
    assert len(chunks) > 3 and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens
    body["stream_options"] = {"include_usage": True}
    *_, end, usage = served.client().chat.completions.create(**body)
    assert end.usage is None and usage.choices == [] and usage.usage.cached_tokens


def test_a_further_turn_goes_on_where_the_conversation_was(served, qa, clip):
    client, session = served.client(), qa.open(clip)
    turns = [{"role": "user", "content": [video(clip), text(QUESTIONS[0])]}]
    lengths = []
    for question in (*QUESTIONS[1:], QUESTIONS[0]):
        reply = client.chat.completions.create(model="embedded", messages=turns)
        said = reply.choices[0].message
        assert said.content == session.ask(turns[-1]["content"][-1]["text"]).text
        lengths.append((reply.usage.prompt_tokens, reply.usage.cached_tokens))
        turns = [*turns, said.model_dump(), {"role": "user", "content": [text(question)]}]
    (first, _), (_, second), (third, cached) = lengths
    # The last question and answer are read as text again, all before them is not.
    assert second < first <= cached < third


class Gate(ReadHere):
    """Opens media only while it is open."""

    def __init__(self):
        self.is_open = threading.Event()

    def open(self, media, sampling):
        assert self.is_open.wait(60)
        return super().open(media, sampling)


def test_questions_that_wait_together_are_answered_side_by_side(qa, clip, answers):
    gate = Gate()
    with running(qa, folder=clip.parent, reader=gate) as served, ThreadPoolExecutor(8) as pool:
        waiting = served.front.thread
        create = served.client().chat.completions.create
        first = pool.submit(create, **chat(video(clip), text("How many?")))
        assert wait_until(lambda: waiting.num_running == 1)
        asked = [chat(video(clip), text(question)) for question in QUESTIONS]
        streamed = pool.submit(lambda: list(create(**asked[0], stream=True)))
        replies = [pool.submit(create, **body) for body in asked[1:]]
        other = pool.submit(create, **asked[0], max_tokens=1)
        assert wait_until(lambda: waiting.num_waiting == 4)
        gate.is_open.set()
        assert first.result().usage.answered_together == 1
        assert other.result().usage.answered_together == 1
        for reply, wanted in zip(replies, answers[1:], strict=True):
            assert reply.result().choices[0].message.content == wanted
            assert reply.result().usage.answered_together == 3
        chunks = streamed.result()
        words = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(words) == answers[0] and sum(map(bool, words)) > 1


class Grows(ReadHere):
    """While it is read the first time, a file becomes longer."""

    grew = False

    def open(self, media, sampling):
        stream = super().open(media, sampling)
        if not self.grew:
            self.grew = True
            media.write_bytes(media.read_bytes() + b"more")
        return stream


def test_a_file_that_changes_while_it_is_read_is_not_taken_for_what_it_was(qa, clip, tmp_path):
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(clip.read_bytes())
    with running(qa, folder=tmp_path, reader=Grows()) as served:
        body = chat(video(copy), text(QUESTIONS[0]))
        status, told, _ = served.post(body)
        assert status == 400 and "clip.mp4 changed while it was read" in told["error"]["message"]
        status, reply, _ = served.post(body)
        assert status == 200 and reply["usage"]["session"] == "new"


def test_turns_without_words_are_of_whom_they_are(served, clip):
    def key(role):
        turns = [{"role": "user", "content": [video(clip)]}, {"role": role, "content": []}]
        body = {"model": "embedded", "messages": [*turns, {"role": "user", "content": "What?"}]}
        asked = read_request(json.dumps(body).encode(), system="")
        return served.front._find(asked, RequestMedia(served.front.sources)).key

    assert key("user") != key("assistant")


def test_an_error_holds_nothing_of_what_was_read_until_it_is_told(qa, monkeypatch):
    class Held:
        pass

    told, held = [], []

    def lend(self, messages, key):
        found = Held()
        held.append(weakref.ref(found))
        raise videonsa.VideoError("no") from ValueError(key)

    monkeypatch.setattr(Sessions, "lend", lend)
    thread = ModelThread(qa, ReadHere(), KeepSettings(device_bytes=1), most_together=1)
    given = {"messages": (), "question": "What?", "key": (), "samplings": (), "stamps": {}}
    thread.submit(Job(**given, options={}, emit=told.append))
    thread.stop()
    assert isinstance(told[0], Failed) and held[0]() is None


def test_a_video_that_comes_in_the_request_is_the_same_video(served, clip, answers):
    create = served.client().chat.completions.create
    create(**chat(video(clip), text(QUESTIONS[0])))
    sent = {"type": "video_url", "video_url": {"url": data_url(clip)}}
    reply = create(**chat(sent, text(QUESTIONS[0])))
    assert reply.choices[0].message.content == answers[0] and reply.usage.cached_tokens > 0


def test_sampling_is_that_of_the_request_in_each_spelling(served, clip):
    client, body = served.client(), chat(video(clip), text(QUESTIONS[0]))
    ways = (
        {"num_frames": 6},
        {"media_io_kwargs": {"video": {"num_frames": 6}}},
        {"media_io_kwargs": {"video": {"num_frames": 6, "fps": 2}}},
        {"mm_processor_kwargs": {"fps": 2, "max_frames": 6}},
    )
    for way in ways:
        reply = client.chat.completions.create(**body, extra_body=way)
        assert reply.usage.media[0]["frames"] == 6, way


def test_the_description_of_the_routes_has_the_statuses_that_they_answer_with(served):
    paths = json.loads(served.get("/openapi.json"))["paths"]
    stated = {
        status for path in paths.values() for one in path.values() for status in one["responses"]
    }
    assert {"200", "408", "504"} <= stated and "422" not in stated


def test_a_wrong_model_and_media_that_are_not_there_are_errors_of_the_client(served, clip):
    client = served.client()
    body = chat(video(clip), text("What flashed?"))
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(**body | {"model": "gpt"})
    with pytest.raises(openai.PermissionDeniedError, match="--media"):
        client.chat.completions.create(**chat(video("/etc/passwd"), text("What?")))
    with pytest.raises(openai.NotFoundError, match="no such file"):
        client.chat.completions.create(**chat(video(clip.with_name("none.mp4")), text("What?")))
