"""How probable answers are: of many questions about what one cache holds, each asked alone.

A question with the beginning of an answer is read as one text, and every text once: the logits
behind it weigh all tokens with which an answer goes on. Texts are read together where static steps
can read them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from videonsa.inference.generation import not_finite
from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.reasons import why_not_static_text
from videonsa.models.decoding.steps import KeptSteps, rows_needed
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import AttentionMethod

MOST_TEXTS = 64
"""That are read together."""


class Weighed(NamedTuple):
    """How probable one answer is."""

    log_probability: float
    """The sum over its tokens."""
    is_greedy: bool
    """Whether each of them is the likeliest."""

    @classmethod
    def of(cls, logits: Tensor, ids: Sequence[int]) -> Self:
        """By the logits `[n, V]` from which each of n ids would be chosen.

        Raises:
            ModelError: logits that are not finite.
        """
        wanted = torch.tensor(ids, device=logits.device)
        logs = logits.float().log_softmax(-1).gather(1, wanted[:, None])
        found = cls(float(logs.sum()), bool((logits.argmax(-1) == wanted).all()))
        if not math.isfinite(found.log_probability):
            raise not_finite("an answer to weigh")
        return found


class _Texts(NamedTuple):
    """What has to be read to weigh answers, and what of it weighs which."""

    texts: list[list[int]]
    """Questions, each with a beginning of answers."""
    weighed: list[list[tuple[int, int]]]
    """Of each text, the tokens that come next, each with the number of its answer among all."""

    @classmethod
    def of(
        cls, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
    ) -> Self:
        places: dict[tuple[int, tuple[int, ...]], int] = {}
        found = cls([], [])
        number = 0
        for index, (question, several) in enumerate(zip(questions, answers, strict=True)):
            for answer in several:
                for length, token in enumerate(answer):
                    begun = tuple(answer[:length])
                    place = places.setdefault((index, begun), len(found.texts))
                    if place == len(found.texts):
                        found.texts.append([*question, *begun])
                        found.weighed.append([])
                    found.weighed[place].append((token, number))
                number += 1
        return found


def likeliest_each(
    questions: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    *,
    read: Callable[[list[list[int]]], Iterator[Tensor]],
) -> list[int]:
    """Which of its answers a model would write to each question with the highest probability.

    Args:
        questions: the text tokens of each.
        answers: the ids of each answer to each of them, with the token that ends it.
        read: gives the logits `[n, V]` after texts, some at a time.

    Returns:
        The place of one answer for each question; the first of equals.

    Raises:
        ModelError: logits that are not finite.
    """
    found = _Texts.of(questions, answers)
    scores = [0.0] * sum(map(len, answers))
    first = 0
    for logits in read(found.texts):
        weighed = found.weighed[first : first + len(logits)]
        wanted = [(row, *one) for row, several in enumerate(weighed) for one in several]
        rows, tokens, numbers = (
            torch.tensor(x, device=logits.device) for x in zip(*wanted, strict=True)
        )
        logs = logits.float().log_softmax(-1)[rows, tokens]
        for number, value in zip(numbers.tolist(), logs.tolist(), strict=True):
            scores[number] += value
        first += len(logits)
    if not all(map(math.isfinite, scores)):
        raise not_finite("an answer to weigh")
    chosen, first = [], 0
    for several in answers:
        own = scores[first : first + len(several)]
        chosen.append(own.index(max(own)))
        first += len(several)
    return chosen


def read_together(
    model: VideoNSAForConditionalGeneration,
    texts: list[list[int]],
    cache: VideoNSACache,
    *,
    method: AttentionMethod,
    kept: KeptSteps,
) -> Iterator[Tensor] | None:
    """The logits after texts that follow a cache, which stays as it is; some texts at a time.

    Returns:
        None where they cannot be read together.
    """
    if why_not_static_text(model, cache, method) is not None:
        return None
    return _read_static(texts, kept)


def _read_static(texts: list[list[int]], kept: KeptSteps) -> Iterator[Tensor]:
    batch = min(len(texts), MOST_TEXTS)
    steps = kept.of(batch, captures=False)
    for first in range(0, len(texts), batch):
        some = texts[first : first + batch]
        filled = some + some[-1:] * (batch - len(some))
        steps.begin(rows_needed(max(map(len, filled)), 0))
        yield steps.read(filled)[: len(some)]
