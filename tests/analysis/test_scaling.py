"""`scaling`: keys that are counted, true lengths, arms at every length, and what is left out."""

from dataclasses import replace

import pytest

from videonsa.analysis.asked import AskedFile, AskedSuite
from videonsa.analysis.counted_keys import mean_keys
from videonsa.analysis.look import LIGHT, picture
from videonsa.analysis.registry import finding_from
from videonsa.analysis.scaling import ON_A_CPU, Scaling, ScalingOptions, arms_of
from videonsa.errors import UsageError
from videonsa.evals.intervals import Interval
from videonsa.inference.engine import load
from videonsa.models.methods import parse_method
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import NSA
from videonsa.ops.spec import NSASpec


@pytest.fixture(scope="module")
def qa():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def scaling(qa):
    asked = AskedSuite(suite="clips", kinds=("when",), videos_per_task=2, tokens=256)
    return Scaling.measure(qa, asked, ScalingOptions(shares=(1.0, 0.5)), progress=print)


def counted(spec, num_tokens, size):
    """Token by token: the current block, those before it up to n, the window, complete blocks."""
    tokens = compressed = 0
    for token in range(num_tokens):
        begin = token - token % size
        before = min(token // size, spec.num_selected_blocks - 1)
        if "selected" in spec.branches:
            tokens += before * size + token - begin + 1
        if "window" in spec.branches:
            tokens += sum(token - key < spec.window_size for key in range(token + 1))
        if "compressed" in spec.branches:
            compressed += sum(end <= token + 1 for end in range(size, num_tokens + 1, size))
    return tokens / num_tokens, compressed / num_tokens


@pytest.mark.parametrize("branches", [("compressed", "selected", "window"), ("window",)])
@pytest.mark.parametrize("block_size", [8, "frame"])
def test_mean_keys_are_those_of_counting_token_by_token(block_size, branches):
    spec = NSASpec(block_size=block_size, num_selected_blocks=3, window_size=5, branches=branches)
    found = mean_keys(NSA(spec), num_tokens=54, tokens_per_frame=6)
    assert found == pytest.approx(counted(spec, 54, 6 if block_size == "frame" else 8))
    assert mean_keys(Dense(), num_tokens=54, tokens_per_frame=6) == (27.5, 0)


def test_every_length_has_its_true_tokens_and_the_same_arms(scaling):
    assert [(one.pairs, one.compared.vision_tokens) for one in scaling.points] == [
        (8, (128, 128)),
        (16, (256, 256)),
    ]
    for point in scaling.points:
        own, drawn, dense = point.compared.arms
        assert [one.label for one in (own, drawn, dense)] == ["nsa", "nsa, random blocks", "dense"]
        assert own.agreement.value == 1
        assert own.attention == pytest.approx(drawn.attention)
        assert own.attention < dense.attention == pytest.approx(1)
        assert point.keys[0] == point.keys[1]
        assert point.keys[2].tokens == (point.compared.vision_tokens[1] + 1) / 2
        assert min(point.compared.prompt_tokens) > max(point.compared.vision_tokens)
    assert ON_A_CPU in scaling.facts.notes


def test_scaling_is_read_again_and_drawn(scaling):
    assert finding_from(scaling.to_json()) == scaling
    assert b"nsa, random blocks, 16 a pair" in picture(scaling, LIGHT, kind="svg")


@pytest.mark.parametrize(
    ("later", "verdict"), [((0.1, 0.3), "falls"), ((0.3, 0.6), "cannot"), ((0.8, 0.9), "rises")]
)
def test_accuracy_changes_only_where_intervals_lie_apart(scaling, later, verdict):
    changed = [
        replace(
            point,
            compared=replace(
                point.compared,
                arms=tuple(
                    replace(arm, accuracy=Interval(sum(ends) / 2, *ends))
                    for arm in point.compared.arms
                ),
            ),
        )
        for point, ends in zip(scaling.points, ((0.4, 0.7), later), strict=True)
    ]
    told = replace(scaling, points=tuple(changed)).sentences()
    assert all(verdict in one for one in told if "from 128 to 256" in one)
    assert sum("from 128 to 256" in one for one in told) == 3


def test_frames_of_two_sizes_are_shown_at_one_context_and_what_has_no_room_is_left_out(qa):
    asked = AskedSuite(suite="2", kinds=("place",), videos_per_task=1, tokens=64, frame_size=224)
    options = ScalingOptions(shares=(0.8,), frame_sizes=(112, 140, 224))
    found = Scaling.measure(qa, asked, options, progress=print)
    assert [(one.frame_size, one.pairs, one.pair_tokens) for one in found.points] == [
        (112, 3, 16),
        (140, 2, 25),
    ]
    assert any("51 tokens of 224 pixels are left out" in note for note in found.facts.notes)
    assert any("one video a length" in note for note in found.facts.notes)


def test_a_file_is_shown_with_a_share_of_its_frames(qa, clip_path):
    asked = AskedFile(video=clip_path, question="What flashed?")
    found = Scaling.measure(qa, asked, ScalingOptions(shares=(0.5, 1.0)), progress=print)
    assert [one.pairs for one in found.points] == [2, 4]
    (short,), (long,) = ({*one.compared.vision_tokens} for one in found.points)
    assert long == 2 * short
    assert found.points[0].compared.arms[0].accuracy is None


def test_other_methods_and_lengths_that_nothing_fits_are_refused(qa):
    asked = AskedSuite(suite="clips", videos_per_task=1, tokens=128)
    for options, wanted in (
        (ScalingOptions(shares=(2.0,)), "want shares above 0"),
        (ScalingOptions(frame_sizes=(224,)), "want --suite 2"),
        (ScalingOptions(shares=(0.01,)), "no length can be shown"),
    ):
        with pytest.raises(UsageError, match=wanted):
            Scaling.measure(qa, asked, options, progress=print)
    with pytest.raises(UsageError, match="'fastv': want nsa or dense"):
        arms_of(parse_method("fastv"))
