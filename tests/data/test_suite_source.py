"""Sources of rendered videos of both suites."""

import pytest

from videonsa.data.scripts import draw, script_of
from videonsa.data.suite_source import SuiteSource
from videonsa.errors import UsageError
from videonsa.rendered.suites import script_from, suite_of


def test_a_source_of_the_first_suite_is_named_as_before_there_was_a_second() -> None:
    source = SuiteSource.parse("synthetic:count=2,frames=64,kinds=order+count")
    assert source.name == (
        "synthetic:count=2,frames=64,size=112,difficulty=easy,kinds=order+count,first=0"
    )
    assert len(SuiteSource.parse("synthetic:count=1,frames=128").spec.kinds) == 9


@pytest.mark.parametrize("kinds", ["any", "state+carry", ""])
def test_videos_of_the_second_suite_are_drawn_from_their_scripts(kinds: str) -> None:
    source = SuiteSource.parse(f"synthetic:suite=2,count=3,frames=512,first=7,kinds={kinds}")
    assert SuiteSource.parse(source.name).spec == source.spec
    for entry in source.entries():
        turns = entry.found.turns  # type: ignore[union-attr]
        text = turns[0].parts[0].script  # type: ignore[union-attr]
        script = script_of(text)
        assert suite_of(script.spec) == 2  # type: ignore[union-attr]
        assert script == script_from(script.seed, spec=script.spec)  # type: ignore[union-attr]
        asked = {turn.parts[-1].text for turn in turns}  # type: ignore[union-attr]
        assert {question.text for question in script.questions} <= asked  # type: ignore[union-attr]


def test_a_still_is_two_frames() -> None:
    source = SuiteSource.parse("synthetic:suite=2,count=1,frames=2,kinds=any")
    (entry,) = source.entries()
    text = entry.found.turns[0].parts[0].script  # type: ignore[union-attr]
    assert draw(script_of(text)).shape == (2, 3, 112, 112)


def test_a_third_suite_and_kinds_of_the_other_suite_are_refused() -> None:
    for text in ("suite=3,frames=512", "suite=1,frames=512,kinds=state", "suite=2,frames=2"):
        with pytest.raises(UsageError, match="want"):
            SuiteSource.parse(f"synthetic:count=1,{text}")
