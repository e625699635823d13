"""Frames that arrive: a question at any moment is answered as of the whole video so far."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import videonsa
from videonsa.errors import BudgetError, UsageError, VideoError
from videonsa.models.methods import Dense

DRAWN = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
FRAMES = np.random.default_rng(0).integers(0, 255, (12, 84, 112, 3), dtype=np.uint8)
TIMES = [0.5 * index for index in range(12)]


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def offline(qa):
    """The answer to a question about the first frames, read at once, by their number."""
    known = {}

    def answer(count):
        if count not in known:
            frames = videonsa.FrameList(FRAMES[:count], times=TIMES[:count])
            known[count] = qa.ask(frames, "What?", timestamps=tuple(TIMES[:count]), **DRAWN)
        return known[count]

    return answer


@settings(max_examples=12, deadline=None, derandomize=True)
@given(parts=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=5))
def test_a_question_at_any_moment_is_that_about_the_video_so_far(qa, offline, parts):
    session = qa.open_live()
    done = 0
    for count, asks in parts:
        count = min(count, len(FRAMES) - done)
        if count:
            session.extend(FRAMES[done : done + count], TIMES[done : done + count])
            done += count
        if asks:
            # Without new frames, a second question would follow the first.
            answer = session.ask("What?", fresh=not count, **DRAWN)
            wanted = offline(done)
            assert answer.text == wanted.text
            for name in ("times", "grid", "height", "width", "video_tokens", "prompt_tokens"):
                assert getattr(answer.usage, name) == getattr(wanted.usage, name), name


def test_a_conversation_goes_on_until_frames_follow(qa, offline):
    session = qa.open_live()
    session.extend(FRAMES[:3], TIMES[:3])
    first = session.ask("What?", **DRAWN)
    second = session.ask("And?", **DRAWN)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert session.ask("What?", fresh=True, **DRAWN).text == first.text
    session.extend(FRAMES[3:4], TIMES[3:4])
    assert session.turns == ()
    assert session.ask("What?", **DRAWN).text == offline(4).text


def test_a_video_that_was_opened_goes_on(qa, offline):
    begun = videonsa.FrameList(FRAMES[:4], times=TIMES[:4])
    session = qa.open(begun, timestamps=tuple(TIMES[:4]))
    session.ask("What?", **DRAWN)
    session.extend(FRAMES[4:9], TIMES[4:9])
    answer = session.ask("What?", **DRAWN)
    assert (answer.text, answer.usage.times) == (offline(9).text, offline(9).usage.times)


def test_frames_of_any_size_get_that_of_the_first(qa):
    session = qa.open_live(max_pixels=112 * 84)
    session.extend([FRAMES[0], np.zeros((40, 40, 3), dtype=np.uint8)], TIMES[:2])
    assert session.clips[0].grid(qa.shape.vision) == (1, 6, 8)


def test_one_frame_is_taken_as_it_is(qa, offline):
    session = qa.open_live()
    session.extend(FRAMES[0], TIMES[0])
    session.extend(Image.fromarray(FRAMES[1]), TIMES[1:2])
    session.extend(torch.from_numpy(FRAMES[2]).permute(2, 0, 1), TIMES[2])
    session.extend(FRAMES[3:5], TIMES[3:5])
    assert session.ask("What?", **DRAWN).text == offline(5).text


def test_what_cannot_follow_is_refused(tiny_folder, qa, clip_path, tmp_path):
    odd = qa.open(clip_path, num_frames=3)
    with pytest.raises(UsageError, match="its 3 frames do not fill their temporal patches"):
        odd.extend(FRAMES[:1], [9.0])
    session = qa.open_live()
    session.extend(FRAMES[:2], TIMES[:2])
    with pytest.raises(UsageError, match=r"a frame at 0.2 s after one at 0.5 s: want frames in"):
        session.extend(FRAMES[2:3], [0.2])
    with pytest.raises(UsageError, match="frames that follow came without times"):
        session.extend(FRAMES[2:3], None)
    with pytest.raises(UsageError, match="question before any video"):
        qa.open_live().ask("What?")
    with pytest.raises(UsageError, match="when_full='drop': want one of refuse, forget"):
        qa.open_live(when_full="drop")
    session.join(clip_path)
    session.say("user", "?")
    assert session.ask("What?", max_new_tokens=1).usage.joined

    class Both(Dense):
        is_causal = False

    whole = videonsa.load(tiny_folder, device="cpu", method=Both())
    with pytest.raises(UsageError, match="what follows a video changes how it attends"):
        whole.open_live()


def test_a_full_context_is_refused_and_nothing_is_lost(qa):
    session = qa.open_live()
    count = 0
    with pytest.raises(BudgetError, match="exceed the context of 2048 tokens: begin with when_fu"):
        for count in range(0, 600, 12):
            session.extend(FRAMES, range(count, count + 12))
    held = session.num_tokens
    assert session.num_tokens + 512 <= 2048
    assert session.clips[0].times[-1] == count - 1
    assert session.ask("What?", max_new_tokens=2).usage.prompt_tokens > held
    assert not session.notes


@pytest.mark.parametrize("block_size", [8, "frame"])
def test_a_full_context_forgets_the_oldest_frames_but_the_first(tiny_folder, block_size):
    method = videonsa.load(tiny_folder, device="cpu").model.method
    method = method.with_options(block_size=block_size)
    qa = videonsa.load(tiny_folder, device="cpu", method=method)
    session = qa.open_live(when_full="forget")
    for count in range(0, 312, 12):
        session.extend(FRAMES, range(count, count + 12))
        assert session.num_tokens + 512 <= 2048
    times = session.clips[0].times
    assert times[:2] == (0, 1)
    assert times[2:] == tuple(range(int(times[2]), 312))
    (note,) = session.notes
    assert note == (
        f"forgotten: all frames before {times[2]:.2f} s but the first 2: the context was full"
    )
    usage = session.ask("What?", max_new_tokens=2).usage
    assert usage.times == times
    assert usage.notes == session.notes
    cache = session._transcript.context.cache
    assert len(cache.tokens.frame_sizes[0]) == len(times) // 2
    kept = session._transcript.context.cache.tokens.vision_mask.sum()
    assert kept == usage.video_tokens == len(times) // 2 * 12


def test_what_is_forgotten_is_as_though_it_had_not_been_kept(qa):
    """Keys that stay are those of before; what follows attends to them alone."""
    session = qa.open_live(when_full="forget")
    session.extend(FRAMES, TIMES)
    context = session._transcript.context
    before = [layer.keys.clone() for layer in context.cache.layers]
    positions = context.cache.next_position
    end = context.num_tokens
    context.forget(end - 60, end - 24)
    for layer, keys in zip(context.cache.layers, before, strict=True):
        assert torch.equal(
            layer.keys, torch.cat([keys[:, :, : end - 60], keys[:, :, end - 24 :]], 2)
        )
    assert context.num_tokens == end - 36
    assert context.cache.next_position == positions


def test_frames_follow_the_last_video_only(qa):
    """Not an image that was joined after it, nor an earlier video."""
    session = qa.open_live()
    session.extend(FRAMES[:4], TIMES[:4])
    place = session.num_tokens
    with pytest.raises(VideoError):
        session.join("no such file")
    session.extend(FRAMES[4:6], TIMES[4:6])
    assert session.num_tokens > place
    session.join(Image.fromarray(FRAMES[0]))
    with pytest.raises(UsageError, match="what was opened or joined last is no video"):
        session.extend(FRAMES[6:7], TIMES[6:7])
    begun = videonsa.FrameList(FRAMES[:2], times=TIMES[:2])
    session.join(begun, timestamps=tuple(TIMES[:2]))
    session.extend(FRAMES[2:4], TIMES[2:4])
    assert [len(clip.times) for clip in session.clips] == [6, 1, 4]


def test_an_image_may_stand_before_the_frames_to_come(qa):
    session = qa.open_live()
    session.join(Image.fromarray(FRAMES[0]))
    session.extend(FRAMES[:2], TIMES[:2])
    assert [clip.is_image for clip in session.clips] == [True, False]


@pytest.mark.parametrize("goes_on", ["join", "say"])
def test_a_frame_that_waits_is_shown_before_what_follows(qa, goes_on):
    session = qa.open_live()
    session.extend(FRAMES[:3], TIMES[:3])
    if goes_on == "join":
        session.join(Image.fromarray(FRAMES[0]))
    else:
        session.say("user", "Look.")
    assert len(session.clips[0].times) == 3
    assert session.ask("What?", max_new_tokens=1).usage.times == tuple(TIMES[:3])


def test_a_session_that_forgets_has_room_for_any_answer(qa):
    session = qa.open_live(when_full="forget")
    for count in range(0, 300, 12):
        session.extend(FRAMES, range(count, count + 12))
    session.extend(FRAMES[:1], [300])
    usage = session.ask("What?", max_new_tokens=1500, stop=["a", "e", "1", "0", "\n", " "]).usage
    assert usage.prompt_tokens + 1500 <= 2048
    assert usage.times[-1] == 300
    assert usage.notes[-1].startswith("forgotten: all frames before")
    whole = qa.open_live(when_full="forget")
    whole.extend(FRAMES, TIMES)
    with pytest.raises(BudgetError, match="begin with fewer pixels"):
        whole.ask("What?", max_new_tokens=2048)


def test_a_frame_that_could_not_be_shown_waits_on(qa, offline, monkeypatch):
    session = qa.open_live()
    session.extend(FRAMES[:1], TIMES[:1])
    with monkeypatch.context() as patch:
        patch.setattr(type(qa.model), "forward", _no_memory)
        with pytest.raises(BudgetError, match="out of memory"):
            session.ask("What?", **DRAWN)
    assert session.ask("What?", **DRAWN).text == offline(1).text


def _no_memory(*_, **__):
    raise MemoryError
