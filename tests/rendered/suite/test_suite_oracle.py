"""The oracle answers every question from what is seen."""

import dataclasses

import pytest

from videonsa.errors import UsageError
from videonsa.rendered.suite import (
    DIFFICULTIES,
    KINDS,
    SuiteSpec,
    frames_for_tokens,
    make_script,
    min_frames,
    oracle,
    questions_of,
    suite_seed,
)

LENGTHS = (
    min_frames(),
    frames_for_tokens(1 << 14, frame_size=112),
    frames_for_tokens(1 << 20, frame_size=224),
    frames_for_tokens(1 << 20, frame_size=112),
)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("position", [None, 0.0, 0.4, 1.0])
def test_the_oracle_is_always_right(
    difficulty: str, num_frames: int, position: float | None
) -> None:
    spec = SuiteSpec(num_frames=num_frames, difficulty=difficulty, position=position)
    for index in range(50):
        script = make_script(suite_seed("test", index), spec=spec)
        blank = dataclasses.replace(script, questions=())
        for question in questions_of(script):
            assert oracle(blank, question.text) == question.answer
            assert question.answer in question.options


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_is_right_about_a_kind_asked_alone(kind: str) -> None:
    spec = SuiteSpec(num_frames=min_frames((kind,)), kinds=(kind,))
    for index in range(50):
        script = make_script(suite_seed("train", index), spec=spec)
        (question,) = questions_of(script)
        assert oracle(script, question.text) == question.answer


def test_a_question_the_suite_does_not_ask_is_refused() -> None:
    script = make_script(0, spec=SuiteSpec(num_frames=min_frames()))
    with pytest.raises(UsageError, match="questions_of"):
        oracle(script, "Why?")
