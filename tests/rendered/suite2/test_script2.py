"""Videos of the second suite: true, unambiguous, balanced, and the same for the same seed."""

import dataclasses
import pickle
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from videonsa.errors import UsageError
from videonsa.rendered.suite import drawing_of, render_frames
from videonsa.rendered.suite2 import (
    ANY,
    KINDS,
    STILL_KINDS,
    Script2,
    Suite2Spec,
    make_script2,
    min_frames2,
    oracle2,
)
from videonsa.rendered.suite2.cast import NAMES2
from videonsa.rendered.suite2.levels2 import DIFFICULTIES

SEEDS = range(25)
FULL = Suite2Spec(num_frames=512)


def scripts(spec: Suite2Spec, seeds: range = SEEDS) -> list[Script2]:
    return [make_script2(seed, spec=spec) for seed in seeds]


def facts(script: Script2) -> list[tuple[str, str, str]]:
    return [(q.kind, q.text, q.answer) for q in script.questions]


def check_oracle(script: Script2) -> None:
    blank = dataclasses.replace(script, questions=())
    for question in script.questions:
        assert oracle2(blank, question.text) == question.answer
        assert question.answer in question.options
        assert len({*question.options}) == len(question.options)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("num_frames", [2, 32, 128, 512, 16384])
@pytest.mark.parametrize("position", [None, 0.0, 1.0])
def test_the_oracle_is_always_right(
    difficulty: str, num_frames: int, position: float | None
) -> None:
    spec = Suite2Spec(num_frames=num_frames, difficulty=difficulty, position=position, kinds=ANY)
    for script in scripts(spec):
        check_oracle(script)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked_alone_and_in_many_questions(kind: str, difficulty: str) -> None:
    least = min_frames2((kind,), difficulty=difficulty)
    for num_frames in (least, 512):
        spec = Suite2Spec(num_frames=num_frames, difficulty=difficulty, kinds=(kind,))
        for script in scripts(spec, range(8)):
            check_oracle(script)
            assert {question.kind for question in script.questions} == {kind}
    assert len(script.questions) >= 3


def test_a_still_is_enough_for_kinds_of_one_picture() -> None:
    assert {kind for kind in KINDS if min_frames2((kind,)) == 2} == {*STILL_KINDS}
    assert min_frames2(("place", "larger")) == 2
    assert min_frames2(("place", "relation")) > 2


def test_the_same_seed_has_the_same_questions_at_every_length_from_4k_tokens_on() -> None:
    assert scripts(FULL) == scripts(FULL)
    longer = scripts(dataclasses.replace(FULL, num_frames=4096))
    assert [facts(script) for script in longer] == [facts(script) for script in scripts(FULL)]
    assert {len(script.questions) for script in longer} == {36}
    assert len({tuple(facts(script)) for script in longer}) == len(SEEDS)


def test_any_draws_other_kinds_for_other_videos() -> None:
    drawn = [script.spec.kinds for script in scripts(dataclasses.replace(FULL, kinds=ANY))]
    assert len({*drawn}) > 20
    assert {kind for kinds in drawn for kind in kinds} == {*KINDS}


def follows(pair: tuple[str, str], others: list[tuple[str, str]]) -> bool:
    """Whether that one came before the other follows from what is known of other pairs."""
    later = {pair[0]}
    for _ in others:
        later |= {late for early, late in others if early in later}
    return pair[1] in later


def test_no_question_is_asked_twice_and_no_order_follows_from_others() -> None:
    for script in scripts(dataclasses.replace(FULL, kinds=("order",))):
        pairs = [(q.answer, *({*q.options} - {q.answer})) for q in script.questions]
        for pair in pairs:
            assert not follows(pair, [other for other in pairs if other != pair])
    for script in scripts(dataclasses.replace(FULL, kinds=ANY)):
        assert len({q.text for q in script.questions}) == len(script.questions)


def test_no_constant_answer_is_much_better_than_chance() -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    ranks: dict[str, Counter[int]] = defaultdict(Counter)
    chance: dict[str, list[float]] = defaultdict(list)
    for script in scripts(FULL, range(300)):
        for question in script.questions:
            answers[question.kind][question.answer] += 1
            ranks[question.kind][question.options.index(question.answer)] += 1
            chance[question.kind].append(1 / len(question.options))
    for kind, counter in answers.items():
        number = counter.total()
        expected = sum(chance[kind]) / number
        for best in (max(counter.values()), max(ranks[kind].values())):
            assert best / number < expected + 4 * (expected / number) ** 0.5 + 0.02, kind


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_no_distractor_has_a_name_that_is_asked_or_comes_while_evidence_is_seen(
    difficulty: str,
) -> None:
    for script in scripts(Suite2Spec(num_frames=2048, difficulty=difficulty, kinds=ANY)):
        words = " ".join(f"{q.text} {q.answer}" for q in script.questions)
        crowd = script.distractors(0, script.duration)
        assert crowd
        assert not {name for name in NAMES2 if name in words} & {one.name for one in crowd}
        tallied = {q.text.split()[2] for q in script.questions if q.kind == "tally"}
        assert not tallied & {one.colour for one in crowd}
        for thing in (*crowd, *script.lines(0, script.duration)):
            assert all(thing.end <= start or end <= thing.start for start, end in script.busy)


def test_nobody_has_two_roles_of_one_act() -> None:
    for script in scripts(dataclasses.replace(FULL, kinds=ANY)):
        pictures: dict[str, set[float]] = defaultdict(set)
        coming: dict[str, set[str]] = defaultdict(set)
        for sprite in script.evidence.objects:
            if not (sprite.vx or sprite.vy):
                pictures[sprite.name].add(sprite.start)
        asked = {
            name
            for question in script.questions
            if question.kind in STILL_KINDS
            for name in NAMES2
            if name in question.text
        }
        assert all(len(pictures[name]) == 1 for name in asked)
        for question in script.questions:
            if question.kind in ("order", "direction", "count", "compare"):
                for name in NAMES2:
                    if name in question.text:
                        coming[name].add(question.kind.replace("direction", "order"))
        assert all(len(kinds) == 1 for kinds in coming.values())


@pytest.mark.parametrize("num_frames", [400, 512, 3000])
def test_no_two_pieces_of_evidence_share_time(num_frames: int) -> None:
    for script in scripts(dataclasses.replace(FULL, num_frames=num_frames)):
        assert all(a[1] < b[0] for a, b in pairwise(script.busy))
        assert script.busy[0][0] >= 0
        assert script.busy[-1][1] <= script.duration
        for question in script.questions:
            assert 0 <= question.position <= 1


def test_evidence_lies_around_a_position() -> None:
    spec = dataclasses.replace(FULL, num_frames=16384, position=0.5)
    for script in scripts(spec, range(5)):
        for question in script.questions:
            assert abs(question.position - 0.5) < 0.08


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_signs_stand_within_a_token_and_radii_are_few_whole_pixels(difficulty: str) -> None:
    spec = Suite2Spec(num_frames=512, difficulty=difficulty)
    for script in scripts(spec):
        shown = script.evidence
        assert all(c.x % 28 == c.y % 28 == 14 and len(c.text) == 1 for c in shown.numbers)
        radii = {s.radius for s in (*shown.objects, *shown.flashes, *shown.boxes)}
        assert radii <= {float(radius) for radius in spec.level2.radii}


def test_the_renderer_of_the_first_suite_draws_them() -> None:
    script = make_script2(3, spec=Suite2Spec(num_frames=64, kinds=("needle",)))
    flash = script.evidence.flashes[0]
    frame = int(flash.start * 2)
    before, shown = render_frames(script, frame, frame + 1), render_frames(script, 0, 64)[frame]
    assert before[0].equal(shown)
    assert shown[:, int(flash.y), int(flash.x)].float().max() > 100


def test_a_drawing_is_small_because_videos_share_noise_and_stamps() -> None:
    drawings = [drawing_of(script, 0, 512) for script in scripts(FULL, range(4))]
    assert len(pickle.dumps(drawings)) < 4 * 100_000
    shifts = drawings[0].shifts
    assert len({*map(tuple, shifts.tolist())}) > 350, "512 of 1024 cuts, some drawn twice"
    (script,) = scripts(FULL, range(1))
    assert (script.noise_shifts(range(100, 300)) == shifts[100:300]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": 2},
        {"num_frames": 301},
        {"kinds": ("any", "place")},
        {"kinds": ("needles",)},
        {"kinds": ()},
        {"difficulty": "brutal"},
        {"position": 2.0},
        {"frame_size": 100},
    ],
)
def test_specs_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="want"):
        dataclasses.replace(FULL, **wrong)


def test_a_question_the_suite_does_not_ask_is_refused() -> None:
    with pytest.raises(UsageError, match="questions_of"):
        oracle2(make_script2(0, spec=FULL), "Why?")
