"""Accuracy with its interval, and what a guesser reaches."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Z_95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


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


def is_right(reply: str, question: Asked) -> bool:
    """Whether a reply is the answer, but for case, an article, spaces and a full stop."""
    return words_of(reply) == question.answer.split()


def words_of(reply: str) -> list[str]:
    """The words of a reply, without what does not matter."""
    words = reply.strip().rstrip(".").lower().split()
    return words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words
