"""The questions about a video of the suite, written from the answers drawn for it."""

from collections.abc import Callable
from dataclasses import dataclass

from videonsa.rendered.clips.clip_questions import NAMES
from videonsa.rendered.clips.scene import DIRECTIONS
from videonsa.rendered.suite.schedule import MINUTE, stretch_of
from videonsa.rendered.suite.suite_answers import COUNTS, ORDINALS, SIDES, SuiteAnswers, rng_of
from videonsa.rendered.suite.suite_spec import PLACES, SuiteSpec


@dataclass(frozen=True, slots=True)
class SuiteQuestion:
    """A question, its one right answer, what a guesser chooses from, and where the evidence is."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...]
    """Equally likely for one who knows the text: chance is 1 / len(options)."""
    position: float
    """Middle between the first and the last second of the evidence, 0 to 1."""
    evidence: tuple[tuple[float, float], ...]
    """Seconds [start, end) of each place, ascending."""


_Drawn = tuple[str, str, tuple[str, ...]]  # text, answer, options
_Writer = Callable[[int, SuiteAnswers, SuiteSpec], _Drawn]


def _needle(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """Which object flashed: was seen in one frame only. One of 24 names."""
    texts = ("What flashed?", "Which object flashed?")
    return rng_of(seed, "needle", "text").choice(texts), answers.needle, NAMES


def _number(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """The four digits shown for one second behind a #. One of 10, the others seen without #."""
    texts = ("Which number was shown after a #?", "What is the number after the # sign?")
    return rng_of(seed, "number", "text").choice(texts), answers.number, answers.numbers


def _needles(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """Which object was in the first, second or third of three white boxes. One of 24 names."""
    texts = ("What was in the {} white box?", "Which object was in the {} white box?")
    text = rng_of(seed, "needles", "text").choice(texts)
    return text.format(ORDINALS[answers.box]), answers.boxed[answers.box], NAMES


def _order(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """Which of two objects, each seen once, came first. One of the two."""
    rng = rng_of(seed, "order", "text")
    texts = ("Which came first, the {} or the {}?", "Which appeared first, the {} or {}?")
    pair = tuple(rng.sample(answers.order, 2))
    return rng.choice(texts).format(*pair), answers.order[0], pair


def _count(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """How often one object came, crossed the picture and left. 1 to 4."""
    texts = ("How many times did the {} appear?", "How many times was the {} seen?")
    text = rng_of(seed, "count", "text").choice(texts)
    return text.format(answers.counted), str(answers.count), COUNTS


def _direction(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """Which way an object, seen once, moved. One of 4."""
    texts = ("Which way does the {} move?", "In which direction does the {} move?")
    text = rng_of(seed, "direction", "text").choice(texts)
    return text.format(answers.mover), answers.direction, tuple(DIRECTIONS)


def _relation(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """On which side of an object another one, seen only with it, stood. One of 4."""
    texts = (
        "Is the {} left of, right of, above or below the {}?",
        "Where is the {}, seen from the {}: left, right, above or below?",
    )
    text = rng_of(seed, "relation", "text").choice(texts)
    return text.format(*answers.related), answers.side, SIDES


def _distance(seed: int, answers: SuiteAnswers, _: SuiteSpec) -> _Drawn:
    """Which of two objects was nearer to a third; all seen once, together. One of the two."""
    rng = rng_of(seed, "distance", "text")
    texts = ("Which is nearer to the {}, the {} or the {}?", "What is closer to the {}, {} or {}?")
    pair = tuple(rng.sample(answers.distances[1:], 2))
    return rng.choice(texts).format(answers.distances[0], *pair), answers.distances[1], pair


def _compare(seed: int, answers: SuiteAnswers, spec: SuiteSpec) -> _Drawn:
    """Whether an object was larger in the first or in the last minute. One of the two.

    A quarter instead of a minute where the video is shorter than four.
    """
    unit = "minute" if stretch_of(spec) == MINUTE else "quarter"
    options = (f"first {unit}", f"last {unit}")
    texts = ("Was the {} larger in the {} or in the {}?", "When was the {} larger, {} or {}?")
    text = rng_of(seed, "compare", "text").choice(texts)
    return text.format(answers.compared, *options), options[not answers.larger_first], options


_WRITERS: dict[str, _Writer] = {
    "needle": _needle,
    "number": _number,
    "needles": _needles,
    "order": _order,
    "count": _count,
    "direction": _direction,
    "relation": _relation,
    "distance": _distance,
    "compare": _compare,
}


def write_questions(
    seed: int, *, spec: SuiteSpec, answers: SuiteAnswers, times: dict[str, tuple[float, ...]]
) -> tuple[SuiteQuestion, ...]:
    """One question per kind of the spec, in its order; `times` are the starts of the evidence."""
    questions = []
    for kind in spec.kinds:
        text, answer, options = _WRITERS[kind](seed, answers, spec)
        evidence = tuple((start, start + PLACES[kind][1]) for start in times[kind])
        position = (evidence[0][0] + evidence[-1][1]) / 2 / spec.seconds
        questions.append(SuiteQuestion(kind, text, answer, options, position, evidence))
    return tuple(questions)
