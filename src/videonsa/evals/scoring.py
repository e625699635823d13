"""Accuracy with its interval, what a guesser reaches, and which answer a reply gives."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Protocol

Z_95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""
_LETTER = re.compile(r"\(?([a-z])\)?(?:[.):]|$)\s*(.*)", re.IGNORECASE | re.DOTALL)


class Asked(Protocol):
    """A question with its truth."""

    @property
    def answer(self) -> str:
        """The one right answer."""

    @property
    def options(self) -> Sequence[str]:
        """What a guesser chooses from, the answer among them."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of right answers with its 95 % Wilson interval."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """Right answers over all."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval; holds near 0 and 1, where the normal one does not."""
        n, p, z = self.total, self.share, Z_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def best_constant(questions: Sequence[Asked]) -> Accuracy:
    """Best score of one who never sees the video.

    The guesser always gives the same answer, or always the option in the same place.
    """
    answers = Counter(question.answer for question in questions)
    places = Counter(question.options.index(question.answer) for question in questions)
    return Accuracy(max((*answers.values(), *places.values())), len(questions))


def exact_match(reply: str, answer: str) -> bool:
    """Whether a reply is the answer, but for case, a leading article, spaces and a full stop."""
    return words_of(reply) == words_of(answer)


def option_named(text: str, options: Sequence[str]) -> str | None:
    """The option that a text is, as in `exact_match`, whatever its commas; None if it is none."""
    words = words_of(text.replace(",", " "))
    same = (option for option in options if words_of(option.replace(",", " ")) == words)
    return next(same, None)


def option_lettered(reply: str, options: Sequence[str]) -> str | None:
    """The option of a letter; None if there is no such option, or another follows the letter."""
    match = _LETTER.fullmatch(reply.strip())
    if match is None:
        return None
    letter, rest = match.groups()
    option = dict(zip(ascii_uppercase, options, strict=False)).get(letter.upper())
    follows = rest.strip()
    return option if not follows or option_named(follows, [option or ""]) else None


def words_of(reply: str) -> list[str]:
    """The words of a reply in lower case, without a leading article and a final full stop."""
    words = reply.strip().rstrip(".").lower().split()
    return words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words
