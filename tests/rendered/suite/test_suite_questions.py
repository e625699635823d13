"""The answers are balanced: who does not see the video stays at chance."""

import math
import re
from collections import Counter, defaultdict

import pytest

from videonsa.rendered.clips.clip_questions import NAMES
from videonsa.rendered.suite import (
    KINDS,
    SuiteQuestion,
    SuiteSpec,
    make_script,
    questions_of,
    suite_seed,
)

NUMBER = 2000
CHANCE = {
    "needle": 1 / 24,
    "number": 1 / 10,
    "needles": 1 / 24,
    "order": 1 / 2,
    "count": 1 / 4,
    "direction": 1 / 4,
    "relation": 1 / 4,
    "distance": 1 / 2,
    "compare": 1 / 2,
}


def draw(split: str) -> dict[str, list[SuiteQuestion]]:
    spec = SuiteSpec(num_frames=1000)
    asked = (questions_of(make_script(suite_seed(split, i), spec=spec)) for i in range(NUMBER))
    return dict(zip(KINDS, map(list, zip(*asked, strict=True)), strict=True))


@pytest.fixture(scope="module")
def train() -> dict[str, list[SuiteQuestion]]:
    return draw("train")


@pytest.fixture(scope="module")
def test() -> dict[str, list[SuiteQuestion]]:
    return draw("test")


def too_many(chance: float, number: int = NUMBER) -> float:
    """Four standard deviations above chance."""
    return number * chance + 4 * math.sqrt(number * chance * (1 - chance))


def chi_square(counts: Counter[object], values: int) -> float:
    expected = counts.total() / values
    absent = (values - len(counts)) * expected
    return absent + sum((n - expected) ** 2 / expected for n in counts.values())


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_their_places_are_balanced(
    kind: str, train: dict[str, list[SuiteQuestion]]
) -> None:
    questions = train[kind]
    values = len(questions[0].options)
    assert pytest.approx(1 / values) == CHANCE[kind]
    limit = values - 1 + 4 * math.sqrt(2 * (values - 1))
    assert chi_square(Counter(q.options.index(q.answer) for q in questions), values) < limit
    if kind in ("order", "distance"):
        values = len(NAMES)
    elif kind == "number":
        return  # ten of nine thousand: only the place can be guessed
    limit = values - 1 + 4 * math.sqrt(2 * (values - 1))
    assert chi_square(Counter(q.answer for q in questions), values) < limit


def clues(question: SuiteQuestion) -> list[str]:
    """What a blind guesser may learn from: the wording, and each name with its place."""
    names = [name for name in re.findall(r"\w+ \w+", question.text) if name in NAMES]
    wording = question.text
    for name in NAMES:
        wording = wording.replace(name, "X")
    return [wording, *(f"{i} {name}" for i, name in enumerate(names))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["answer", "place"])
def test_a_guesser_who_learnt_from_the_words_of_the_questions_stays_at_chance(
    kind: str,
    by: str,
    train: dict[str, list[SuiteQuestion]],
    test: dict[str, list[SuiteQuestion]],
) -> None:
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in train[kind]:
        for clue in clues(question):
            seen[clue][target(question, question.answer, by)] += 1
    right = 0
    for question in test[kind]:
        votes = {
            option: math.prod(
                1 + seen[clue][target(question, option, by)] for clue in clues(question)
            )
            for option in question.options
        }
        right += max(votes, key=votes.__getitem__) == question.answer
    assert right < too_many(CHANCE[kind])


def target(question: SuiteQuestion, option: str, by: str) -> str:
    return option if by == "answer" else str(question.options.index(option))


def test_the_answer_to_one_question_does_not_tell_the_answer_to_another(
    train: dict[str, list[SuiteQuestion]],
) -> None:
    for one in ("count", "direction", "relation", "compare", "order"):
        for other in ("count", "direction", "relation", "distance", "number"):
            if one == other:
                continue
            pairs = Counter(
                (a.options.index(a.answer), b.options.index(b.answer))
                for a, b in zip(train[one], train[other], strict=True)
            )
            values = len(train[one][0].options) * len(train[other][0].options)
            assert chi_square(pairs, values) < values + 4 * math.sqrt(2 * values)
