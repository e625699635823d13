"""Sessions whose images and videos are compressed before the language model reads them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from compressing import EverySecond, SomeFrames
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import videonsa
from videonsa.errors import BudgetError, UsageError
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.session import Session
from videonsa.models.methods.compression import compress_clip
from videonsa.models.methods.nsa import NSA
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import save_cache
from videonsa.models.tower_probe import EncodedFrames
from videonsa.ops.spec import NSASpec

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
DRAWN = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
FRAMES = np.random.default_rng(0).integers(0, 255, (12, 84, 112, 3), dtype=np.uint8)
TIMES = [0.5 * index for index in range(12)]
PICTURE = Image.fromarray(FRAMES[7])
FIXED = NSA(NSASpec(block_size=8, num_selected_blocks=2, window_size=8))
BY_FRAMES = NSA(NSASpec(block_size="frame", num_selected_blocks=2, window_size=8))


def loaded(folder, method):
    return videonsa.load(folder, method=method, device="cpu")


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return loaded(tiny_folder, EverySecond(attention=FIXED))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tmp_path_factory.mktemp("stored") / "cache"


def prompt_of(config, method, clips):
    """Ids and compressed videos, with text around each."""
    ids, vision = [300], []
    for number, (time, rows, columns) in enumerate(clips):
        count = time * rows * columns
        features = torch.randn(count, 64, generator=torch.manual_seed(number))
        kept = compress_clip(method, [EncodedFrames(features, (time, rows, columns))])
        grid, seconds = (time, 2 * rows, 2 * columns), tuple(1.5 * i for i in range(time))
        vision.append(EncodedVision("video", kept.features, grid, seconds, kept.places))
        ids += [390, *[config.video_token_id] * len(kept.features), 391]
    return [*ids, 392], vision


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    data=st.data(),
    clips=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=2
    ),
    behind=st.sampled_from([FIXED, BY_FRAMES]),
)
def test_cuts_anywhere_change_nothing(qa, stored, data, clips, behind):
    """Also beside frames without tokens; what was read is gone back in, or stored and loaded."""
    method = SomeFrames(attention=behind)
    ids, vision = prompt_of(qa.model.config, method, clips)
    whole = Context(qa.model, method=method)
    wanted = whole.read(whole.passage(ids, vision))
    context = Context(qa.model, method=method)
    passage = context.passage(ids, vision)
    cuts = data.draw(st.sets(st.integers(1, len(ids) - 1), max_size=4))
    for start, stop in pairwise([0, *sorted(cuts), len(ids)]):
        if data.draw(st.booleans()):
            with context.aside():
                context.read(passage.cut(start, data.draw(st.integers(start + 1, len(ids)))))
        if start and data.draw(st.booleans()):
            save_cache(stored, context.cache, qa.model, method=method)
            cache = load_cache(stored, qa.model, method=method).cache
            context = Context(qa.model, method=method, cache=cache)
        logits = context.read(passage.cut(start, stop))
    torch.testing.assert_close(logits, wanted, **CLOSE)
    assert context.cache.tokens.frame_sizes == whole.cache.tokens.frame_sizes
    assert context.cache.next_position == whole.cache.next_position


def test_usage_tells_what_was_encoded_and_read_and_a_plan_knows_it_before(tiny_folder, clip_path):
    method = EverySecond(attention=FIXED)
    usage = loaded(tiny_folder, method).ask(clip_path, "What?", max_new_tokens=2).usage
    plan = videonsa.plan_video(clip_path, tiny_folder, method=method)
    for told in (usage, plan):
        assert told.video_tokens == 24
    assert usage.encoded_tokens == plan.sampling.num_tokens == 48
    assert usage.budget.keys == plan.budget.keys
    assert usage.computed.left == plan.computed.left == ((0, 24),)
    assert usage.computed.tower_tokens == plan.computed.tower_tokens == 48
    assert 0 < usage.computed.attention < 0.6
    dense = loaded(tiny_folder, FIXED).ask(clip_path, "What?", max_new_tokens=2).usage
    assert dense.prompt_tokens - usage.prompt_tokens == 24
    whole = videonsa.plan_video(clip_path, tiny_folder, method=FIXED)
    assert whole.prompt_tokens - plan.prompt_tokens == 24
    before, after = ({one.name: one.terms for one in each.memory.stages} for each in (whole, plan))
    for name, term in (("prefill", "cache"), ("joining", "features"), ("next token", "cache")):
        assert after[name][term] < before[name][term]


def test_a_clip_that_fits_the_context_once_compressed_is_read(tiny_folder, clip_path):
    """The tiny model takes 2048 tokens; so many frames have 2880."""
    frames = videonsa.FrameList(np.concatenate([FRAMES] * 40), times=[0.5 * i for i in range(480)])
    options = {"max_frames": 480, "max_tokens": 4000, "max_new_tokens": 2}
    usage = loaded(tiny_folder, EverySecond()).ask(frames, "What?", **options).usage
    assert (usage.video_tokens, usage.encoded_tokens) == (1440, 2880)
    with pytest.raises(BudgetError, match="exceed the context"):
        loaded(tiny_folder, "dense").ask(frames, "What?", **options)


@pytest.mark.parametrize("behind", [FIXED, BY_FRAMES], ids=["fixed", "frames"])
def test_clips_that_join_are_one_prompt_read_at_once(tiny_folder, clip_path, behind):
    qa = loaded(tiny_folder, SomeFrames(attention=behind))
    session = qa.open(clip_path)
    session.ask("Before?", **DRAWN)
    session.join(PICTURE, fresh=True)
    recorder = AttentionRecorder()
    answer = session.ask("What?", recorder=recorder, **DRAWN)
    assert answer.usage.cached_tokens > 20
    assert answer.usage.video_tokens == sum(session.clips[0].frame_tokens) + 1
    assert recorder.text_mass().shape[-1] == 4 + 1, "frames without tokens are counted too"
    at_once = Session(qa)
    for clip in (clip_path, PICTURE):
        at_once.show(qa.encode(clip, qa.wanted_sampling(clip, None, {})))
    again = at_once.ask("What?", **DRAWN)
    assert (again.text, again.usage.cached_tokens) == (answer.text, 0)
    assert again.usage.prompt_tokens == answer.usage.prompt_tokens


def test_frames_that_follow_are_the_video_read_at_once(qa):
    session = qa.open_live()
    for start, stop in ((0, 3), (3, 4), (4, 9)):
        session.extend(FRAMES[start:stop], TIMES[start:stop])
        answer = session.ask("What?", **DRAWN)
        frames = videonsa.FrameList(FRAMES[:stop], times=TIMES[:stop])
        wanted = qa.ask(frames, "What?", timestamps=tuple(TIMES[:stop]), **DRAWN)
        assert answer.text == wanted.text
        for name in ("times", "grid", "video_tokens", "encoded_tokens", "prompt_tokens"):
            assert getattr(answer.usage, name) == getattr(wanted.usage, name), name


def test_frames_that_were_forgotten_are_those_of_their_kept_tokens(qa, monkeypatch):
    session = qa.open_live(when_full="forget")
    session.extend(FRAMES, TIMES)
    before = session.num_tokens
    monkeypatch.setattr(qa, "shape", replace(qa.shape, context=before + 40))
    answer = session.ask("What?", max_new_tokens=36)
    assert answer.usage.video_tokens < 36
    assert answer.usage.video_tokens == 6 * answer.usage.grid[0]
    assert session.clips[0].frame_tokens == (6,) * answer.usage.grid[0]


def test_where_frames_are_compared_none_can_follow(tiny_folder, clip_path):
    qa = loaded(tiny_folder, SomeFrames())
    with pytest.raises(UsageError, match="'some frames' compares all frames of a video to choose"):
        qa.open_live()
    with pytest.raises(UsageError, match="frames cannot follow: method 'some frames' compares"):
        qa.open(clip_path).extend(FRAMES[:2], [9.0, 9.5])


@pytest.mark.parametrize("unread", [False, True], ids=["read", "with a clip that is not read"])
def test_a_session_that_was_saved_goes_on(qa, clip_path, tmp_path, unread):
    session = qa.open(clip_path)
    session.ask("What?", **DRAWN)
    if unread:
        session.show(qa.encode(PICTURE, qa.wanted_sampling(PICTURE, None, {})))
    session.save(tmp_path / "saved", progress=False)
    again = Session.load(tmp_path / "saved", qa, progress=False)
    answers = [one.ask("And?", **DRAWN) for one in (session, again)]
    assert answers[0].text == answers[1].text
    assert answers[0].usage.video_tokens == answers[1].usage.video_tokens == 24 + 6 * unread
    with pytest.raises(UsageError, match="method"):
        Session.load(tmp_path / "saved", loaded(qa.name, FIXED), progress=False)
