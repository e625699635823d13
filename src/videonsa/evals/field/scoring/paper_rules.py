"""How lmms-eval scored an answer when the paper was written, one pure function per benchmark.

They repeat the rules with all their traps; nothing is mended here, or numbers would not compare.
An answer comes without blanks around it, as lmms-eval strips it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np

Doc = Mapping[str, Any]
"""A document of the data set."""

_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)
_JOINED_PREFIXES = (
    *_PREFIXES[:4],
    *("The best option isThe correct option is", "Best answer:Best option:"),
)
"""For want of a comma, pairs of prefixes are one: of "Best option: C" the B of "Best" is taken."""
_NUM_OPTIONS = 5
_NO_OPTION = "N/A"
_MARKS = ",.!?;:'"
_FEW_WORDS = 5
NUMBER_KINDS = (
    *("object_abs_distance", "object_counting", "object_size_estimation"),
    "room_size_estimation",
)
"""Questions of VSI-Bench that are answered by a number."""
_THRESHOLDS = np.linspace(0.5, 0.95, int((0.95 - 0.5) / 0.05 + 2))
"""Of the mean relative accuracy; 10.999... is cut to 10, so that 0.95 is the tenth and last."""


class Parsed(NamedTuple):
    """What a rule makes of an answer."""

    value: float
    """From 0 to 1."""
    parse: str | None
    """What it took for the answer; None: it found nothing."""
    drawn: bool = False
    """Whether it then drew an option at random."""


def first_letter(answer: str, letters: str, *, prefixes: Sequence[str]) -> str | None:
    """The first capital letter of `letters` anywhere in an answer without `prefixes`."""
    for prefix in prefixes:
        answer = answer.replace(prefix, "")
    found = re.search(f"[{letters}]", answer)
    return found and found[0]


def longvideobench(doc: Doc, answer: str, *, seed: str) -> Parsed:
    """The first letter from A to E; without any, one of the options is drawn.

    Args:
        doc: the document.
        answer: of the model.
        seed: of the draw.
    """
    truth = ascii_uppercase[doc["correct_choice"]]
    parse = first_letter(answer, "ABCDE", prefixes=_PREFIXES)
    if parse is not None:
        return Parsed(float(parse == truth), parse)
    options = [doc.get(f"option{number}") for number in range(_NUM_OPTIONS)]
    count = options.index(_NO_OPTION) if _NO_OPTION in options else _NUM_OPTIONS
    drawn = random.Random(seed).choice(list(ascii_uppercase[:count]))
    return Parsed(float(drawn == truth), None, drawn=True)


def mlvu(doc: Doc, answer: str) -> Parsed:
    """The character before the first closing bracket; without any, the whole answer."""
    end = answer.find(")")
    parse = answer if end < 0 else answer[max(end - 1, 0) : end]
    return Parsed(float(parse == doc["answer"]), parse or None)


def timescope(doc: Doc, answer: str) -> Parsed:
    """The first letter from A to F."""
    return _letter_is_answer(doc, first_letter(answer, "ABCDEF", prefixes=_PREFIXES))


def longtimescope(doc: Doc, answer: str) -> Parsed:
    """As TimeScope, with pairs of prefixes that are joined."""
    return _letter_is_answer(doc, first_letter(answer, "ABCDEF", prefixes=_JOINED_PREFIXES))


def first_of_four(doc: Doc, answer: str) -> Parsed:
    """Video-MME and LVBench: the first letter from A to D, with pairs of prefixes joined."""
    return _letter_is_answer(doc, first_letter(answer, "ABCD", prefixes=_JOINED_PREFIXES))


def _letter_is_answer(doc: Doc, parse: str | None) -> Parsed:
    return Parsed(float(parse is not None and parse.lower() == doc["answer"].lower()), parse)


def tomato(doc: Doc, answer: str) -> Parsed:
    """Any capital letter of an option counts, whatever it stands in.

    Of several the one that stands last in brackets is taken, and without brackets the first in the
    alphabet. An answer of more than five words without such a letter may be the text of an option;
    else the answer is A.
    """
    options: Sequence[str] = doc["options"]
    for mark in _MARKS:
        answer = answer.strip(mark)
    letters = ascii_uppercase[: len(options)]
    found = [letter for letter in letters if letter in answer]
    places = [answer.rfind(f"({letter})") for letter in found]
    if not found and len(answer.split()) > _FEW_WORDS:
        text = answer.lower()
        named = [pair for pair in zip(letters, options, strict=True) if pair[1].lower() in text]
        found = [letter for letter, _ in named]
        places = [text.rfind(option.lower()) for _, option in named]
    parse = found[int(np.argmax(places))] if found else None
    return Parsed(float((parse or "A") == ascii_uppercase[doc["answer"]]), parse)


def vsibench(doc: Doc, answer: str) -> Parsed:
    """The first word: equal to the letter, or a number whose error is weighed."""
    word = answer.split(" ")[0].rstrip(".").strip()
    if doc["question_type"] not in NUMBER_KINDS:
        return Parsed(float(word.lower() == doc["ground_truth"].lower()), word or None)
    try:
        number = float(word)
    except ValueError:
        return Parsed(0.0, None)
    return Parsed(mean_relative_accuracy(number, float(doc["ground_truth"])), word)


def mean_relative_accuracy(number: float, truth: float) -> float:
    """The share of thresholds 0.5, 0.55 to 0.95 that 1 - relative error reaches."""
    if truth == 0:
        return float(number == 0)
    return float((abs(number - truth) / truth <= 1 - _THRESHOLDS).mean())


def lsdbench(doc: Doc, answer: str) -> Parsed:
    """The last letter from A to D that stands alone."""
    found = re.findall(r"(?<![a-zA-Z])[ABCD](?![a-zA-Z])", answer)
    parse = found[-1] if found else None
    return Parsed(float(parse == doc["correct_answer"]), parse)
