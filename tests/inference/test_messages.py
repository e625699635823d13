"""Messages of text, images and videos in any order, and what of a session they use again."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import videonsa
from videonsa.errors import UsageError, VideoError
from videonsa.inference.context import Context
from videonsa.inference.messages import ImagePart, Message, VideoPart, session_for
from videonsa.video.chat import OPEN_TURN
from videonsa.video.decode import read_video

VECTORS = json.loads(
    (Path(__file__).parents[1] / "fixtures/processing/conversations.json").read_text("utf-8")
)


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture
def fed(qa, monkeypatch):
    """The ids that the model reads, in order."""
    ids = []
    passage = Context.passage

    def spy(self, given, *rest, **options):
        if isinstance(given, list):
            ids.extend(given)
        return passage(self, given, *rest, **options)

    monkeypatch.setattr(Context, "passage", spy)
    return ids


def photo(seed=0):
    return Image.fromarray(torch.full((84, 112, 3), 40 * seed, dtype=torch.uint8).numpy())


def few(clip_path, **given):
    return VideoPart(source=clip_path, changes={"max_frames": 2}, **given)


class RecordedTokenizer:
    """The Qwen2.5 tokenizer on the recorded pieces; any other text is a KeyError."""

    def encode(self, text, **options):
        return VECTORS["pieces"][text]

    def convert_tokens_to_ids(self, tokens):
        return VECTORS["pieces"][tokens][0]


class Clip:
    """Of so many tokens."""

    def __init__(self, is_image, count):
        self.is_image, self._grid = is_image, (1, 2, 2 * count)

    def grid(self, vision):
        return self._grid


class Heard:
    """Takes what a session would be told, and reads nothing."""

    def __init__(self, counts):
        self.counts, self.clips = counts, []

    def join(self, source, **options):
        self.clips.append(Clip(source == "i", self.counts[len(self.clips)]))

    def ignore(self, *given):
        pass

    say = end_turn = place = return_to = ignore


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["record"]["id"])
def test_ids_are_those_of_the_published_chat_template(case, qa, monkeypatch):
    turns = case["record"]["turns"]
    while turns[-1]["role"] != "user":
        turns = turns[:-1]

    def part_of(part):
        if "text" in part:
            return part["text"]
        kind = ImagePart if "image" in part else VideoPart
        return kind(source="i" if "image" in part else "v")

    heard = Heard(case["counts"])
    monkeypatch.setattr("videonsa.inference.messages.Session", lambda *_, **__: heard)
    monkeypatch.setattr("videonsa.inference.messages.clip_info", lambda _: Clip(True, 1))
    monkeypatch.setattr(qa, "tokenizer", RecordedTokenizer())
    told = [Message(turn["role"], [part_of(part) for part in turn["parts"]]) for turn in turns]
    ids = session_for(qa, told).prompt_ids()
    assert ids == case["ids"][: len(ids)]
    left = case["ids"][len(ids) :]
    assert left == [] or VECTORS["pieces"]["<|im_end|>"][0] in left


def test_what_is_read_is_what_prompt_ids_says(qa, clip_path, fed):
    """Two videos, images between texts, several turns, and two turns of one role."""
    first = [
        Message("system", ["Be brief."]),
        Message("user", ["\nBefore: ", few(clip_path), "\nafter: ", few(clip_path, start=1.0)]),
        Message("user", [ImagePart(source=photo()), "Same?"]),
    ]
    conversation = session_for(qa, first)
    conversation.session.ask(conversation.question, max_new_tokens=1)
    assert conversation.prompt_ids() == fed
    text = qa.tokenizer.decode(fed)
    assert "<|vision_end|><|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>" in text
    assert conversation.reused == 0 and conversation.num_parts == 6
    assert conversation.session.clips[1].times[0] == 1.0
    more = [*first, Message("assistant", ["Yes."]), Message("user", [ImagePart(source=photo(1))])]
    again = session_for(qa, more, previous=conversation)
    del fed[:]
    answer = again.session.ask(again.question, max_new_tokens=1)
    assert again.question is OPEN_TURN  # the last message ends in a picture
    assert again.reused == 5
    ids = again.prompt_ids()
    assert answer.usage.cached_tokens + len(fed) == len(ids) == answer.usage.prompt_tokens
    assert ids[-len(fed) :] == fed


def test_only_what_differs_is_read(qa, clip_path, tmp_path, monkeypatch):
    read = []
    encode = type(qa).encode

    def spy(self, video, *rest, **options):
        read.append(video)
        return encode(self, video, *rest, **options)

    monkeypatch.setattr(type(qa), "encode", spy)
    copied, image = shutil.copy(clip_path, tmp_path / "copy.mp4"), photo()

    def ask(previous, *parts):
        now = session_for(qa, [Message("user", parts)], previous=previous)
        text = now.session.ask(now.question, max_new_tokens=3, temperature=1.0, seed=1).text
        alone = session_for(qa, [Message("user", parts)])
        assert alone.session.ask(
            alone.question, max_new_tokens=3, temperature=1.0, seed=1
        ).text == (text)
        return now, read[: -len([part for part in parts if not isinstance(part, str)])]

    seen = few(clip_path), ImagePart(source=image)
    now, new = ask(None, *seen, "What?")
    assert (len(new), now.reused) == (2, 0)
    for parts, reused, num_new in (
        ((few(str(clip_path)), ImagePart(source=image), "Where?"), 2, 0),
        ((few(clip_path), ImagePart(source=photo()), "Where?"), 1, 1),  # another object
        ((few(clip_path), few(copied), "Where?"), 1, 1),
        ((few(clip_path), few(copied), "And", " then?"), 2, 0),
        ((few(clip_path, end=2.0), few(copied), "Where?"), 0, 2),  # another stretch
    ):
        del read[:]
        now, new = ask(now, *parts)
        assert (now.reused, len(new)) == (reused, num_new)
    os.utime(copied, (1, 1))  # as if it had been written again
    assert session_for(qa, [Message("user", parts)], previous=now).reused == 1


def test_a_part_that_cannot_be_read_leaves_the_session_to_others(qa, clip_path, tmp_path):
    good = [Message("user", [few(clip_path), "What?"])]
    now = session_for(qa, good)
    for wrong in ("gone.mp4", "other.mp4"):
        parts = [few(clip_path), few(tmp_path / wrong), "What?"]
        with pytest.raises(VideoError, match="no such file"):
            session_for(qa, [Message("user", parts)], previous=now)
    again = session_for(qa, good, previous=now)
    assert again.reused == 1
    assert again.session.ask(again.question, max_new_tokens=1).usage.cached_tokens > 0


def test_who_calls_may_read_and_name_what_is_shown(qa, clip_path):
    asked = []

    def read(source, sampling):
        asked.append(sampling)
        return read_video(source, sampling=sampling)

    parts = [few(clip_path, key="hash"), "What?"]
    now = session_for(qa, [Message("user", parts)], read=read)
    assert [one.max_frames for one in asked] == [2]
    assert len(now.session.clips[0].times) == 2
    again = [few("gone.mp4", key="hash"), "Where?"]
    assert session_for(qa, [Message("user", again)], read=read, previous=now).reused == 1


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "came with none"),
        ([("user", ["a"]), ("assistant", ["b"])], "a last one of the assistant"),
        ([("assistant", [ImagePart(source="a.png")])], "turn of the assistant came with vision"),
        ([("user", "a")], "parts of a message came as str"),
        ([("user", [1])], "a part of a message came as int"),
        ([("users", ["a"])], "role='users'"),
    ],
)
def test_messages_that_ask_nothing_are_refused(qa, messages, reason):
    with pytest.raises(UsageError, match=reason):
        session_for(qa, [Message(*one) for one in messages])


def test_a_video_in_place_of_an_image_is_refused(qa, clip_path):
    with pytest.raises(UsageError, match="a video in place of an image"):
        session_for(qa, [Message("user", [ImagePart(source=clip_path), "What?"])])


def test_no_question_is_refused_where_nothing_asks(qa, clip_path):
    session = qa.open(clip_path)
    session.ask("What?", max_new_tokens=1)
    with pytest.raises(UsageError, match="nothing was said or shown since the last answer"):
        session.ask(OPEN_TURN)
