"""`videonsa watch`: a line an answer, by the seconds of the video; frames as they arrive."""

import json
import re
import threading
import time

import numpy as np
import pytest
from conftest import write_clip

import videonsa
from videonsa.cli.main import main
from videonsa.video.decode import read_video
from videonsa.video.sampling import SamplingSpec

QUESTION = "What moves?"
POLL = 0.01


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """16 frames in 8 seconds, in a transport stream."""
    return write_clip(tmp_path_factory.mktemp("recordings") / "clip.ts", num_frames=16)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture
def watch(tiny_folder, capsys, monkeypatch):
    monkeypatch.setattr("videonsa.video.follow.POLL", POLL)

    def run(source, *options):
        arguments = ["watch", str(source), "--model", str(tiny_folder), "--device", "cpu"]
        status = main([*arguments, "--ask", QUESTION, "--max-new-tokens", "4", *options])
        return status, *capsys.readouterr()

    return run


def answers_of(out):
    return [json.loads(line) for line in out.splitlines()]


def offline(model, path, *, until, fps=2.0):
    """The answer about the frames up to a second, inclusive."""
    times = np.arange(0, until + 1e-6, 1 / fps).tolist()
    clip = read_video(path, sampling=SamplingSpec(timestamps=times))
    session = model.open_live()
    session.extend(clip.frames, clip.times)
    return session.ask(QUESTION, max_new_tokens=4).text


def test_an_answer_is_the_one_about_the_frames_up_to_its_second(watch, recording, model):
    status, out, err = watch(recording, "--every", "3", "--idle", "0.1", "--json")
    answers = answers_of(out)
    assert status == 0
    assert [answer["second"] for answer in answers] == [3.0, 6.0, 7.5]
    assert [answer["usage"]["num_frames"] for answer in answers] == [7, 13, 16]
    assert [answer["usage"]["last_second"] for answer in answers] == [3.0, 6.0, 7.5]
    for answer in answers:
        assert answer["question"] == QUESTION
        assert answer["text"] == offline(model, recording, until=answer["second"])
    assert "frames     112x84, 2 a second, from 0.00 s on" in err


def test_text_is_one_line_an_answer_with_its_second(watch, recording):
    options = ("--every", "4", "--idle", "0.1")
    status, out, _ = watch(recording, *options)
    assert status == 0
    assert re.findall(r"^ +([0-9.]+) s  ", out, re.MULTILINE) == ["4.00", "7.50"]
    assert len(out.splitlines()) == 2
    _, both, _ = watch(recording, *options, "--ask", "Which way?")
    assert [QUESTION in line for line in both.splitlines()] == [True, False] * 2
    told = [answer["text"] for answer in answers_of(watch(recording, *options, "--json")[1])]
    assert [" ".join(line.split()[2:]) for line in out.splitlines()] == [
        " ".join(text.split()) for text in told
    ]


def test_a_recording_is_answered_about_while_it_grows(watch, recording, tmp_path, capsys):
    data = recording.read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(data[: len(data) // 3])

    def record():
        for part in range(4, 13):
            time.sleep(0.05)
            with path.open("ab") as file:  # to write it anew would cut it for a moment
                file.write(data[path.stat().st_size : len(data) * part // 12])

    writer = threading.Thread(target=record)
    writer.start()
    _, out, _ = watch(path, "--every", "2", "--idle", "1", "--json")
    writer.join()
    _, whole, _ = watch(recording, "--every", "2", "--idle", "0.1", "--json")
    assert [(answer["second"], answer["text"]) for answer in answers_of(out)] == [
        (answer["second"], answer["text"]) for answer in answers_of(whole)
    ]


def test_once_is_one_answer_about_what_is_there(watch, recording):
    start = time.monotonic()
    _, out, _ = watch(recording, "--once", "--idle", "never", "--json")
    (answer,) = answers_of(out)
    assert answer["second"] == 7.5
    assert time.monotonic() - start < 30


def test_start_end_rate_and_pixels_are_taken(watch, recording):
    options = ("--start", "2", "--end", "5", "--fps", "1", "--max-pixels", "3136")
    _, out, _ = watch(recording, *options, "--every", "2", "--idle", "0.1", "--json")
    answers = answers_of(out)
    assert [answer["second"] for answer in answers] == [4.0]
    assert answers[0]["usage"]["num_frames"] == 3
    assert answers[0]["usage"]["height"] * answers[0]["usage"]["width"] <= 3136


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory):
    """50 frames of 32 tokens each: more than the context of 2048 has room for at 10 a second."""
    path = tmp_path_factory.mktemp("recordings") / "long.ts"
    return write_clip(path, num_frames=50, width=224, height=224, fps=10)


def test_a_full_context_ends_with_an_answer_and_an_error(watch, long_recording):
    options = ("--fps", "20", "--every", "100", "--idle", "0.1")
    status, out, err = watch(long_recording, *options)
    assert status == 2
    assert len(out.splitlines()) == 1
    assert 0 < float(out.split()[0]) < 4.9
    last = err.splitlines()[-1]
    assert "no room for the frames up to second" in last
    assert "want --when-full forget" in last


def test_what_is_forgotten_is_told(watch, long_recording):
    options = ("--fps", "20", "--every", "2", "--idle", "0.1", "--when-full", "forget")
    status, out, err = watch(long_recording, *options, "--json")
    assert status == 0
    assert "note       forgotten:" in err
    answers = answers_of(out)
    assert answers[-1]["second"] == pytest.approx(4.95)
    assert answers[-1]["usage"]["num_frames"] < 100
    assert answers[-1]["usage"]["first_second"] == 0.0
    assert any(note.startswith("forgotten:") for note in answers[-1]["usage"]["notes"])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--ask", " "), "question came empty"),
        (("--stop", ""), "stop=('',): want a tuple"),
        (("--start", "100"), "it ended before second 100"),
        (("--every", "0"), "--every"),
        (("--idle", "soon"), "--idle soon: want seconds, or 'never'"),
        (("--frame-rate", "4"), "a file with times for images"),
        (("--frame-rate", "4", "--as-written"), "want one of them"),
    ],
)
def test_what_cannot_be_done_is_one_line(watch, recording, options, what):
    status, out, err = watch(recording, "--idle", "0.1", *options)
    assert (status, out) == (2, "")
    assert what in err.splitlines()[-1]


def test_what_the_demonstration_model_knows_is_told_once(watch, recording):
    _, _, err = watch(recording, "--idle", "0.1", "--model", "embedded")
    assert err.count("the embedded demonstration model knows") == 1
    assert "and this is none" not in err


def test_a_source_that_is_not_there_is_told_before_the_model_is_loaded(watch, tmp_path):
    for source in (tmp_path / "nothing.ts", "rtsp://camera/1"):
        status, out, err = watch(source, "--model", "nothing")
        assert (status, out) == (2, "")
        assert "no such file" in err or "an address" in err
