"""Questions of a benchmark become lines of its log, whatever happens to one of them."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_clip
from PIL import Image

import videonsa
from videonsa.data.isolated import CallFailed, IsolatedCaller
from videonsa.errors import VideoError
from videonsa.evals.field.asker import FieldAsker
from videonsa.evals.field.question import FieldQuestion, otherwise_asked
from videonsa.evals.field.sample_line import parse_sample_line
from videonsa.inference.context import Context
from videonsa.inference.messages import ImagePart, Message, VideoPart, session_for


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture
def clips(tmp_path):
    """Two sound videos, one that hangs, one that ends its reader, and one of noise."""
    for number, name in enumerate(("a", "b", "hangs", "dies")):
        write_clip(tmp_path / f"{name}.mp4", num_frames=4 + 2 * number)
    (tmp_path / "broken.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    return tmp_path


def question(number, video, text, **more):
    parts = [VideoPart(source=str(video)), text]
    options = more.pop("options", {"max_new_tokens": 3, "temperature": 0.0})
    return FieldQuestion(
        task="tiny",
        split="test",
        doc_id=number,
        messages=[Message("user", parts)],
        options=options,
        **more,
    )


def asked(qa, questions, **options):
    asker = FieldAsker(qa, **({"isolated": False} | options))
    try:
        return list(asker.ask(iter(questions)))
    finally:
        asker.close()


def test_what_cannot_be_answered_is_a_line_and_leaves_the_others_intact(qa, clips, monkeypatch):
    """That a process which hangs or crashes is seen is shown in tests/data/test_isolated.py."""
    calls = []

    def call(self, function, source, sampling):
        calls.append(Path(source).stem)
        if calls[-1] in ("hangs", "dies"):
            kind, reason = calls[-1], f"not read in {self.deadline:g} s"
            raise CallFailed(kind, reason if kind == "hangs" else "its reader ended: signal 6")
        try:
            return function(source, sampling)
        except VideoError as error:
            raise CallFailed("broken", str(error)) from error

    monkeypatch.setattr(IsolatedCaller, "__call__", call)
    sound = [question(0, clips / "a.mp4", "What?"), question(7, clips / "b.mp4", "Where?")]
    wrong = [
        question(1, clips / "hangs.mp4", "What?"),
        question(2, clips / "hangs.mp4", "Where?"),  # not waited for again
        question(3, clips / "dies.mp4", "What?"),
        question(4, clips / "broken.mp4", "What?"),
        question(5, clips / "gone.mp4", "What?"),
        question(6, clips / "a.mp4", "word " * 3000),
    ]
    lines = asked(qa, [sound[0], *wrong, sound[1]], time_limit=2.0, isolated=True)
    assert calls == ["a", "hangs", "dies", "broken", "gone", "a", "b"]
    reasons = ["not read in 2 s", "not read in 2 s", "its reader ended: signal 6"]
    reasons += ["", "no such file", "exceed the context"]
    assert [line.doc_id for line in lines] == list(range(8))
    for line, reason in zip(lines[1:7], reasons, strict=True):
        assert line.answer is None and reason in line.failure and "\n" not in line.failure
    alone = asked(qa, sound)
    assert [one.without_costs() for one in (lines[0], lines[7])] == [
        one.without_costs() for one in alone
    ]
    for line in lines:
        assert parse_sample_line(json.loads(json.dumps(asdict(line)))) == line


def test_a_line_says_what_the_model_was_given(qa, clips):
    parts = [
        "First: ",
        VideoPart(source=str(clips / "a.mp4"), start=0.5, end=1.5),
        ImagePart(source=Image.new("RGB", (112, 84), (9, 0, 0))),
        "What?",
    ]
    one = FieldQuestion(
        task="tiny",
        split="test",
        doc_id=3,
        messages=[Message("system", ["Be brief."]), Message("user", parts)],
        options={"max_new_tokens": 2, "temperature": 0.0, "stop": ["x"]},
        doc={"answer": "A"},
        notes=["num_beams=1 is what is done"],
    )
    (line,) = asked(qa, [one])
    conversation = session_for(qa, one.messages)
    answer = conversation.session.ask(conversation.question, **one.options)
    assert (line.answer, line.finish, line.new_tokens) == (
        answer.text,
        answer.finish,
        answer.new_tokens,
    )
    ids = conversation.prompt_ids()
    assert line.prompt_tokens == answer.usage.prompt_tokens == len(ids)
    assert line.prompt_sha256 == hashlib.sha256(np.array(ids, "<i8").tobytes()).hexdigest()
    video, image = line.vision
    assert (video.seconds, video.grid, video.height, video.width) == (
        (0.5, 1.0),
        (1, 6, 8),
        84,
        112,
    )
    assert (image.kind, image.seconds, image.tokens) == ("image", (0.0,), 12)
    assert image.source.startswith("image in memory, 112 x 84, sha256 ")
    assert line.video_tokens == video.tokens + image.tokens
    assert (line.method, line.method_parameters["block_size"]) == ("nsa", 8)
    assert line.density == answer.usage.computed.attention
    assert line.generation["stop"] == ["x"] and line.generation["repetition_penalty"] == 1.0
    assert line.notes[0] == "num_beams=1 is what is done"
    assert line.messages[1].parts[1].start == 0.5 and line.doc == {"answer": "A"}


def test_questions_about_a_video_share_a_session_and_stand_side_by_side(qa, clips):
    texts = ["What?", "Where is it?", "Why?"]
    questions = [question(number, clips / "a.mp4", text) for number, text in enumerate(texts)]
    questions.append(question(3, clips / "b.mp4", "What?"))
    alone = [line for one in questions for line in asked(qa, [one])]
    one_by_one, beside = asked(qa, questions), asked(qa, questions, batch_size=2)
    for lines in (one_by_one, beside):
        assert [line.without_costs() for line in lines] == [line.without_costs() for line in alone]
    for lines in (one_by_one, beside):  # the first question about a video finds nothing read
        assert [line.cached_tokens > 24 for line in lines] == [False, True, True, False]
    assert all(line.cached_tokens == 0 for line in alone)
    assert len({line.seconds for line in beside[:2]}) == 1  # they share it


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"options": {"max_new_tokens": 4, "temperature": 0.0}}, "max_new_tokens 3, not 4"),
        ({"options": {"max_new_tokens": 3, "temperature": 0.0, "stop": ("x",)}}, "stop [], not"),
        ({"continuation": "red"}, "request generate, not loglikelihood"),
        ({"messages": [Message("user", ["What?"])]}, "another prompt"),
    ],
)
def test_an_answer_in_the_log_is_one_to_the_question_that_was_asked(qa, clips, changes, told):
    one = question(0, clips / "a.mp4", "What?")
    (line,) = asked(qa, [one])
    found = otherwise_asked(
        parse_sample_line(json.loads(json.dumps(asdict(line)))), replace(one, **changes)
    )
    assert found == told if told is None else found.startswith(told)
    failed = replace(line, answer=None, failure="no such file")
    assert otherwise_asked(failed, replace(one, **changes)) is None


def test_a_likelihood_is_that_of_the_whole_text(qa, clips):
    one = question(0, clips / "a.mp4", "What?", continuation="a red square")
    (line,) = asked(qa, [one])
    conversation = session_for(qa, one.messages)
    ids = qa.tokenizer.encode("a red square")
    clip = qa.encode(str(clips / "a.mp4"), qa.sampling).vision(qa.shape.vision)
    context = Context(qa.model)
    passage = context.passage([*conversation.prompt_ids(), *ids], [clip])
    with torch.inference_mode():
        whole = qa.model(input_ids=passage.ids, inputs_embeds=passage.embeds, rows=passage.rows)
    logits = whole.logits[0, -len(ids) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
    assert line.log_probability == pytest.approx(float(wanted), abs=1e-4)
    assert line.is_greedy is bool((logits.argmax(-1) == torch.tensor(ids)).all())
    assert (line.answer, line.request) == ("a red square", "loglikelihood")
    assert line.new_tokens == len(ids)


def test_a_likelihood_says_whether_the_model_would_write_the_text(qa, clips):
    (first,) = asked(qa, [question(0, clips / "a.mp4", "What?", options={"max_new_tokens": 1})])
    weighed = [
        asked(qa, [question(0, clips / "a.mp4", "What?", continuation=text)])[0]
        for text in (first.answer, first.answer + " no")
    ]
    assert [line.is_greedy for line in weighed] == [True, False]
    assert weighed[0].log_probability > weighed[1].log_probability


def test_an_answer_that_takes_too_long_is_a_failure(qa, clips, monkeypatch):
    ticks = iter(range(0, 10_000, 100))
    monkeypatch.setattr("videonsa.evals.field.asker.time.monotonic", lambda: next(ticks))
    one = question(
        0, clips / "a.mp4", "What?", options={"max_new_tokens": 20, "temperature": 1.0, "seed": 1}
    )
    greedy = [question(number, clips / "a.mp4", text) for number, text in enumerate("ab", start=1)]
    for line in asked(qa, [one, *greedy], time_limit=50.0, batch_size=2):
        assert line.failure.startswith("not answered in 50 s")
