"""A script follows from its seed and spec; nothing in it contradicts a question."""

import dataclasses
import re
from itertools import pairwise

import pytest

from videonsa.errors import UsageError
from videonsa.rendered.clips.clip_questions import NAMES
from videonsa.rendered.suite import (
    DIFFICULTIES,
    KINDS,
    Script,
    SuiteSpec,
    frames_for_tokens,
    make_script,
    min_frames,
    position_tolerance,
    questions_of,
    suite_seed,
)
from videonsa.rendered.suite.suite_spec import GAP

SEEDS = range(60)
BASE = SuiteSpec(num_frames=2000)


def scripts(spec: SuiteSpec) -> list[Script]:
    return [make_script(suite_seed("test", index), spec=spec) for index in SEEDS]


def facts(script: Script) -> list[tuple[str, str]]:
    """Answers without the word for the length of the ends that `compare` is about."""
    return [(q.kind, q.answer.replace("minute", "quarter")) for q in questions_of(script)]


def test_a_script_follows_from_its_seed_and_spec() -> None:
    assert scripts(BASE) == scripts(BASE)
    assert len({tuple(facts(script)) for script in scripts(BASE)}) == len(SEEDS)


def test_train_and_test_seeds_never_meet() -> None:
    last = (1 << 40) - 1
    assert suite_seed("train", last) < suite_seed("test", 0)
    assert suite_seed("train", 0) == suite_seed("train", last) - last


@pytest.mark.parametrize(("split", "index"), [("valid", 0), ("test", -1), ("train", 1 << 40)])
def test_seeds_outside_the_splits_are_refused(split: str, index: int) -> None:
    with pytest.raises(UsageError, match="train or test"):
        suite_seed(split, index)


@pytest.mark.parametrize(
    ("change", "same_times"),
    [
        ({"difficulty": "hard"}, True),
        ({"frame_size": 224}, True),
        ({"position": 0.3}, False),
        ({"num_frames": 50_000}, False),
        ({"num_frames": min_frames()}, False),
    ],
)
def test_length_difficulty_and_position_leave_the_answers_as_they_are(
    change: dict[str, object], same_times: bool
) -> None:
    for one, other in zip(scripts(BASE), scripts(dataclasses.replace(BASE, **change)), strict=True):
        assert facts(one) == facts(other)
        if same_times:
            assert questions_of(one) == questions_of(other)


def test_a_question_is_the_same_whichever_others_are_asked() -> None:
    for kind in KINDS:
        for script in scripts(dataclasses.replace(BASE, kinds=(kind,))):
            together = questions_of(make_script(script.seed, spec=BASE))[KINDS.index(kind)]
            (alone,) = questions_of(script)
            assert (alone.text, alone.answer) == (together.text, together.answer)


@pytest.mark.parametrize("num_frames", [min_frames(), 500, 5000, 31_250, 131_072])
@pytest.mark.parametrize("position", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_the_evidence_lies_where_it_is_wanted(num_frames: int, position: float) -> None:
    spec = SuiteSpec(num_frames=num_frames, position=position)
    for script in scripts(spec):
        for question in questions_of(script):
            if question.kind != "compare":
                allowed = position_tolerance(spec, question.kind)
                assert abs(question.position - position) <= allowed


def test_one_place_alone_lies_exactly_where_it_is_wanted() -> None:
    for position in (0.0, 0.25, 0.6, 1.0):
        spec = SuiteSpec(num_frames=10_000, position=position, kinds=("needle",))
        for script in scripts(spec):
            assert abs(questions_of(script)[0].position - position) <= 2 / script.duration


def test_without_a_position_the_evidence_is_spread_evenly() -> None:
    spec = SuiteSpec(num_frames=20_000)
    places: dict[str, list[float]] = {kind: [] for kind in KINDS if kind != "compare"}
    for index in range(800):
        for question in questions_of(make_script(suite_seed("train", index), spec=spec)):
            if question.kind in places:
                places[question.kind].append(question.position)
    for kind, positions in places.items():
        for quarter in range(4):
            share = sum(quarter <= 4 * p < quarter + 1 for p in positions) / len(positions)
            assert abs(share - 0.25) < 0.06, kind  # 4 standard deviations


@pytest.mark.parametrize("num_frames", [min_frames(), 300, 960, 20_000])
@pytest.mark.parametrize("position", [None, 0.0, 1.0])
def test_compare_is_about_both_ends(num_frames: int, position: float | None) -> None:
    for script in scripts(SuiteSpec(num_frames=num_frames, position=position)):
        question = questions_of(script)[KINDS.index("compare")]
        end = min(60.0, script.duration / 4)
        assert question.evidence[0][1] <= end
        assert question.evidence[1][0] >= script.duration - end
        assert ("minute" in question.text) == (script.duration >= 240)


@pytest.mark.parametrize("num_frames", [min_frames(), 200, 10_000])
@pytest.mark.parametrize("position", [None, 0.0, 0.5])
def test_no_two_pieces_of_evidence_share_time(num_frames: int, position: float | None) -> None:
    for script in scripts(SuiteSpec(num_frames=num_frames, position=position)):
        places = sorted(place for q in questions_of(script) for place in q.evidence)
        assert all(place[0] % 0.5 == 0 and place[1] - place[0] >= 0.5 for place in places)
        assert all(a[1] + GAP <= b[0] for a, b in pairwise(places))
        assert places[0][0] >= 0 and places[-1][1] <= script.duration


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_no_distractor_has_a_name_that_a_question_or_an_answer_has(difficulty: str) -> None:
    for script in scripts(dataclasses.replace(BASE, difficulty=difficulty)):
        words = " ".join(f"{q.text} {q.answer}" for q in questions_of(script))
        asked = {name for name in NAMES if name in words}
        crowd = script.distractors(0, script.duration)
        assert (
            len(crowd)
            > 0.9 * script.spec.level.distractors * script.duration / script.spec.level.stay[1]
        )
        assert not asked & {sprite.name for sprite in crowd}


def test_nothing_else_can_pass_for_a_flash() -> None:
    for script in scripts(SuiteSpec(num_frames=min_frames(), difficulty="hard")):
        shown = script.evidence
        for sprite in (*script.distractors(0, script.duration), *shown.objects, *shown.boxes):
            seen = min(sprite.end, script.duration) - max(sprite.start, 0)
            assert seen >= 2
            assert abs(sprite.vx) + abs(sprite.vy) > 0.01 * script.spec.frame_size
        (flash,) = shown.flashes
        assert flash.end - flash.start == 1 / script.fps
        assert flash.vx == flash.vy == 0


def test_only_the_asked_number_has_a_mark_and_lines_show_the_others() -> None:
    for script in scripts(dataclasses.replace(BASE, difficulty="hard")):
        number = questions_of(script)[KINDS.index("number")]
        shown = [re.findall(r"\d+", line.text) for line in script.lines(0, script.duration)]
        assert {digits for found in shown for digits in found} == (
            {*number.options} - {number.answer}
        )
        assert not any("#" in line.text for line in script.lines(0, script.duration))


def test_any_cut_of_time_sees_the_same_crowd() -> None:
    for script in scripts(dataclasses.replace(BASE, difficulty="hard"))[:10]:
        whole = script.distractors(0, 100)
        for time in (0.0, 3.5, 15.0, 31.5, 96.0):
            now = script.distractors(time, time)
            assert now == tuple(s for s in whole if s.start <= time < s.end)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": min_frames() - 2},
        {"num_frames": 301},
        {"frame_size": 84},
        {"frame_size": 120},
        {"difficulty": "brutal"},
        {"position": 1.5},
        {"kinds": ()},
        {"kinds": ("needle", "needle")},
        {"kinds": ("haystack",)},
    ],
)
def test_specs_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="want"):
        dataclasses.replace(BASE, **wrong)


def test_tokens_give_the_frames_that_fit() -> None:
    assert frames_for_tokens(1 << 20, frame_size=224) == 32_768
    assert frames_for_tokens(1023, frame_size=112) == 2 * 63
    for tokens, size in ((15, 112), (1000, 100)):
        with pytest.raises(UsageError, match="want"):
            frames_for_tokens(tokens, frame_size=size)
