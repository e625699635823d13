"""A prompt read in parts, wherever they end, is the prompt read at once."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import videonsa
from videonsa.errors import UsageError
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.methods import nsa_method
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import save_cache
from videonsa.ops.spec import NSASpec

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SEGMENTS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(1, 9)),
        st.tuples(st.just("image"), st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.just("video"), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)
SPECS = {
    "own blocks": {},
    "blocks of frames": {"block_size": "frame"},
}


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tmp_path_factory.mktemp("stored") / "cache"


def prompt_of(config, segments, seed=0):
    """Ids, images and videos of a prompt; text stands at both ends and between neighbours."""
    generator = torch.Generator().manual_seed(seed)
    ids, vision = [300], []
    for kind, *size in segments:
        if kind == "text":
            ids += torch.randint(301, 390, (size[0],), generator=generator).tolist()
            continue
        time, rows, columns = size if kind == "video" else (1, *size)
        count = time * rows * columns
        features = torch.randn(count, config.text_config.hidden_size, generator=generator)
        seconds = tuple(1.5 * i for i in range(time)) if kind == "video" else ()
        vision.append(EncodedVision(kind, features, (time, 2 * rows, 2 * columns), seconds))
        ids += [390, *[getattr(config, f"{kind}_token_id")] * count, 391]
    return [*ids, 392], vision


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), segments=SEGMENTS, spec=st.sampled_from(sorted(SPECS)))
def test_cuts_anywhere_change_nothing(qa, stored, data, segments, spec):
    """Between them the context is left and gone back to, forked, or saved and loaded."""
    ids, vision = prompt_of(qa.model.config, segments)
    method = qa.model.method.with_options(**SPECS[spec])
    whole = Context(qa.model, method=method)
    wanted = whole.read(whole.passage(ids, vision))
    context = Context(qa.model, method=method)
    passage = context.passage(ids, vision)
    cuts = data.draw(st.sets(st.integers(1, len(ids) - 1), max_size=5)) if len(ids) > 1 else set()
    edges = [0, *sorted(cuts), len(ids)]
    for start, stop in pairwise(edges):
        if data.draw(st.booleans()):  # what was read aside leaves no trace
            with context.aside():
                context.read(passage.cut(start, data.draw(st.integers(start + 1, len(ids)))))
        match data.draw(st.sampled_from(["go on", "fork", "save and load"])):
            case "fork":
                context = Context(qa.model, method=method, cache=context.cache.fork())
            case "save and load" if start:
                save_cache(stored, context.cache, qa.model, method=method)
                loaded = load_cache(stored, qa.model, method=method)
                context = Context(qa.model, method=method, cache=loaded.cache)
        logits = context.read(passage.cut(start, stop))
    torch.testing.assert_close(logits, wanted, **CLOSE)
    assert context.num_tokens == len(ids)
    assert context.cache.tokens.frame_sizes == whole.cache.tokens.frame_sizes
    assert context.cache.next_position == whole.cache.next_position
    for ours, theirs in zip(context.cache.layers, whole.cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, **CLOSE)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    before=st.integers(1, 5),
    parts=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 3), st.integers(1, 4)),
)
def test_frames_that_follow_are_the_video_at_once(qa, before, parts, size):
    """The video's extent may exceed its duration: positions after it come from either."""
    rows, columns = size
    video = ("video", before + sum(parts), rows, columns)
    ids, (encoded,) = prompt_of(qa.model.config, [("text", 3), video])
    whole = Context(qa.model)
    wanted = whole.read(whole.passage(ids, [encoded]))
    area, first = rows * columns, 5
    context = Context(qa.model)
    start = context.passage(ids[:first]).rows.next_positions[0, -1].item()
    begun = encoded._replace(
        features=encoded.features[: before * area],
        grid=(before, *encoded.grid[1:]),
        seconds=encoded.seconds[:before],
    )
    context.read(context.passage(ids[: first + before * area], [begun]))
    done = before
    for count in parts:
        features = encoded.features[done * area : (done + count) * area]
        seconds = encoded.seconds[done : done + count]
        context.read(context.frames(features, encoded.grid[1:], seconds, start=start))
        done += count
    logits = context.read(context.passage(ids[first + done * area :]))
    torch.testing.assert_close(logits, wanted, **CLOSE)
    assert context.cache.next_position == whole.cache.next_position


def test_frames_cannot_follow_where_all_have_to_be_known(qa):
    spec = NSASpec(block_size=8, num_selected_blocks=2, window_size=8, temporal_ids="truncated")
    context = Context(qa.model, method=nsa_method(spec))
    context.read(context.passage([300, 301]))
    with pytest.raises(UsageError, match="can follow with 'exact' only"):
        context.frames(torch.zeros(4, 64), (4, 4), (1.0,), start=2)


def test_an_answer_leaves_all_but_its_last_token_read(qa):
    ids, vision = prompt_of(qa.model.config, [("video", 3, 2, 2)])
    context = Context(qa.model)
    settings = GenerationSettings(max_new_tokens=4)
    tokens = list(context.answer(context.passage(ids, vision), settings=settings, stop_ids=set()))
    assert context.num_tokens == len(ids) + len(tokens) - 1
    context.go_back(len(ids))
    again = context.read(context.passage([token for (token,) in tokens]))
    whole = Context(qa.model)
    wanted = whole.read(whole.passage([*ids, *(token for (token,) in tokens)], vision))
    torch.testing.assert_close(again, wanted, **CLOSE)


def test_the_likeliest_candidate_has_the_highest_probability_of_all_its_tokens(qa):
    ids, vision = prompt_of(qa.model.config, [("video", 3, 2, 2)])
    context = Context(qa.model)
    candidates = [[311], [312, 313], [314, 315, 316], [312, 317]]
    chosen = context.likeliest(context.passage(ids, vision), candidates)
    assert context.num_tokens == len(ids)
    scores = []
    for candidate in candidates:
        whole = Context(qa.model)
        passage = whole.passage([*ids, *candidate], vision)
        logits = qa.model(
            input_ids=passage.ids, inputs_embeds=passage.embeds, rows=passage.rows
        ).logits[0, len(ids) - 1 : -1]
        picked = logits.log_softmax(-1).gather(1, torch.tensor(candidate)[:, None])
        scores.append(picked.sum().item())
    assert chosen == scores.index(max(scores))
