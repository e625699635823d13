"""A session that is saved and loaded answers as if it had not been."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import videonsa
from videonsa.errors import UsageError
from videonsa.inference.session import Session
from videonsa.models.methods import nsa_method
from videonsa.models.stored_cache.save import save_cache
from videonsa.ops.spec import NSASpec

DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
_AT_ONCE = nsa_method(NSASpec(block_size=8, selection_scope="block"))
"""A method by which every answer reads all from the beginning."""


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


def opened(qa, clip):
    return qa.open(clip)


def in_a_conversation(qa, clip):
    session = qa.open(clip)
    session.ask("What moves?", **DRAWN)
    return session


def after_a_stream_that_was_stopped(qa, clip):
    session = qa.open(clip)
    next(session.ask("What moves?", stream=True, **DRAWN))
    return session


def with_text_held_back(qa, clip):
    session = qa.open(clip)
    session.say("user", "What mov")
    return session


def with_an_image_that_is_not_read(qa, clip):
    session = in_a_conversation(qa, clip)
    picture = Image.effect_noise((112, 84), 80).convert("RGB")
    session.show(qa.encode(picture, qa.wanted_sampling(picture, None, {})))
    assert session._transcript._unread
    return session


STATES = [
    opened,
    in_a_conversation,
    after_a_stream_that_was_stopped,
    with_text_held_back,
    with_an_image_that_is_not_read,
]


def conversation(session):
    """What follows: three questions, the last of them after what was opened alone."""
    asked = [("es?", {}), ("And then?", {}), ("Where?", {"fresh": True})]
    answers = [session.ask(text, **DRAWN, **more) for text, more in asked]
    return [
        (one.text, one.usage.prompt_tokens, one.usage.cached_tokens, one.usage.joined)
        for one in answers
    ], session.turns


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_it_goes_on_as_the_saved_one_would_have(qa, clip_path, tmp_path, state):
    session = state(qa, clip_path)
    session.save(tmp_path / "saved")
    loaded = Session.load(tmp_path / "saved", qa)
    assert loaded.num_tokens == session.num_tokens
    assert loaded.turns == session.turns
    assert conversation(loaded) == conversation(session)


_STEPS = (
    ("say", "What mov"),
    ("say", "es \u00e9"),
    ("ask", False),
    ("ask", True),
    ("stop", None),
    ("join", None),
    ("forget", None),
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(st.sampled_from(_STEPS), st.booleans()), min_size=2, max_size=5))
def test_saving_and_loading_at_any_moment_changes_no_answer(qa, clip_path, tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("session") / "saved"
    sessions, said = [qa.open(clip_path, max_frames=4) for _ in range(2)], [[], []]
    for (what, how), stored in steps:
        for session, texts in zip(sessions, said, strict=True):
            if what == "say":
                session.say("user", how)
            elif what == "ask":
                texts.append(session.ask("Where?", fresh=how, **DRAWN).text)
            elif what == "stop":
                next(session.ask("Where?", stream=True, **DRAWN), None)
            elif what == "join":
                session.join(clip_path, max_frames=2)
            else:
                session.forget_conversation()
        if stored:
            sessions[0].save(folder)
            sessions[0] = Session.load(folder, qa)
    assert said[0] == said[1]
    assert sessions[0].ask("?", **DRAWN).text == sessions[1].ask("?", **DRAWN).text
    assert sessions[0].num_tokens == sessions[1].num_tokens
    assert sessions[0].turns == sessions[1].turns


FRAMES = np.random.default_rng(0).integers(0, 255, (9, 84, 112, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_frames_go_on_arriving_also_behind_one_that_waits_for_its_pair(qa, tmp_path, count):
    sessions, times = [qa.open_live() for _ in range(2)], [0.5 * index for index in range(9)]
    for session in sessions:
        if count:
            session.extend(FRAMES[:count], times[:count])
    for asks in (False, True, False):
        sessions[0].save(tmp_path / "saved")
        sessions[0] = Session.load(tmp_path / "saved", qa)
        if count and asks:
            answers = [session.ask("What?", **DRAWN) for session in sessions]
            assert answers[0].text == answers[1].text
            assert answers[0].usage.times == answers[1].usage.times
    for session in sessions:
        session.extend(FRAMES[count : count + 4], times[count : count + 4])
    answers = [session.ask("What?", **DRAWN) for session in sessions]
    assert answers[0].text == answers[1].text
    assert answers[0].usage.times == answers[1].usage.times == tuple(times[: count + 4])
    with pytest.raises(UsageError, match="want frames in order"):
        sessions[0].extend(FRAMES[:1], times[:1])


def test_a_session_that_may_forget_frames_still_does(qa, tmp_path):
    texts = []
    for stored in (False, True):
        session = qa.open_live(when_full="forget", max_pixels=112 * 84)
        for begin in range(0, 297, 27):
            session.extend(np.tile(FRAMES, (3, 1, 1, 1)), [*map(float, range(begin, begin + 27))])
            if stored and begin % 2:
                session.save(tmp_path / "saved")
                session = Session.load(tmp_path / "saved", qa)
        answer = session.ask("What?", **DRAWN)
        assert any("forgotten" in note for note in answer.usage.notes)
        texts.append((answer.text, answer.usage.times, answer.usage.notes))
    assert texts[0] == texts[1]


def test_where_every_answer_reads_all_no_cache_is_stored(tiny_folder, clip_path, tmp_path):
    qa = videonsa.load(tiny_folder, device="cpu", method=_AT_ONCE)
    session = in_a_conversation(qa, clip_path)
    session.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("layer-*"))
    loaded = Session.load(tmp_path / "saved", qa)
    assert conversation(loaded) == conversation(session)


def test_a_session_without_a_video_is_one_too(qa, clip_path, tmp_path):
    session = Session(qa, system="Be brief.")
    session.save(tmp_path / "saved")
    loaded = Session.load(tmp_path / "saved", qa)
    for one in (session, loaded):
        one.join(clip_path)
    assert conversation(loaded) == conversation(session)


def test_saving_stops_an_answer_that_is_being_written_and_keeps_what_it_said(
    qa, clip_path, tmp_path
):
    session = qa.open(clip_path)
    stream = session.ask("What moves?", stream=True, max_new_tokens=8)
    next(stream)
    session.save(tmp_path / "saved")
    assert len(session.turns) == 2
    assert Session.load(tmp_path / "saved", qa).turns == session.turns


def test_a_loaded_session_is_saved_again_over_its_own_folder(qa, clip_path, tmp_path):
    session = in_a_conversation(qa, clip_path)
    for _ in range(3):
        session.save(tmp_path / "saved")
        session = Session.load(tmp_path / "saved", qa)
        session.ask("And then?", max_new_tokens=2)
    assert len(session.turns) == 8


def test_8_bits_are_told_of_in_every_answer(qa, clip_path, tmp_path):
    session = qa.open(clip_path)
    session.save(tmp_path / "saved", precision="int8")
    loaded = Session.load(tmp_path / "saved", qa)
    notes = loaded.ask("What moves?", max_new_tokens=1).usage.notes
    assert (
        f"{tmp_path / 'saved'} keeps keys and values in 8 bits: answers may differ a" in notes[-1]
    )
    assert notes[:-1] == session.ask("What moves?", max_new_tokens=1).usage.notes


def test_on_the_embedded_model_8_bits_change_the_next_logits_by_less_than_two_thousandths(
    clip_path, tmp_path
):
    qa = videonsa.load(device="cpu")
    session = qa.open(clip_path)
    session.save(tmp_path / "saved", precision="int8")
    loaded, logits = Session.load(tmp_path / "saved", qa), []
    for one in (session, loaded):
        context = one._transcript.context
        with torch.inference_mode(), context.aside():
            logits.append(context.read(context.passage(qa.tokenizer.encode("What moves?"))))
    assert 0 < (logits[1] - logits[0]).norm() / logits[0].norm() < 2e-3


def test_another_model_or_method_is_refused(qa, tiny_folder, clip_path, tmp_path):
    qa.open(clip_path).save(tmp_path / "saved")
    dense = videonsa.load(tiny_folder, device="cpu", method="dense")
    with pytest.raises(UsageError, match='saved was saved with method "nsa", now "dense"'):
        Session.load(tmp_path / "saved", dense)
    with pytest.raises(UsageError, match=r"was saved with .*: load it with the model"):
        Session.load(tmp_path / "saved", videonsa.load(device="cpu"))


def test_a_cache_that_is_of_no_session_is_refused(qa, tmp_path):
    context = Session(qa)._transcript.context
    also = {"format": {"<|im_start|>": 1}}
    save_cache(tmp_path / "other", context.cache, qa.model, also=also)
    with pytest.raises(UsageError, match=r"saved with format\.<\|im_end\|> null, now \d+;"):
        Session.load(tmp_path / "other", qa)
    Session(qa).save(tmp_path / "saved")
    also = json.loads((tmp_path / "saved" / "cache.json").read_text())["contents"]["fingerprint"]
    save_cache(tmp_path / "bare", context.cache, qa.model, also={"format": also["format"]})
    with pytest.raises(UsageError, match="bare holds a cache and no session"):
        Session.load(tmp_path / "bare", qa)
