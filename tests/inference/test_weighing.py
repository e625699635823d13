"""Answers are weighed together as they are one by one."""

import pytest
import torch
from tiny_models import prompt, tiny

from videonsa.errors import ModelError
from videonsa.inference import weighing
from videonsa.inference.context import Context
from videonsa.models.cache import VideoNSACache

QUESTIONS = [[40, 41, 42], [60], [50 + i % 60 for i in range(40)], [70, 71]]
ANSWERS = [
    [[40, 5], [41, 5], [43, 44, 5]],
    [[40, 5], [40, 41, 5], [40, 42, 5]],
    [[7], [8], [9]],
    [[50, 5]],
]


@pytest.fixture(scope="module")
def context():
    cache = VideoNSACache()
    model = tiny()
    with torch.inference_mode():
        model(**prompt(4), past_key_values=cache)
    return Context(model, cache=cache)


def one_by_one(context):
    chosen = []
    for question, answers in zip(QUESTIONS, ANSWERS, strict=True):
        with context.aside():
            chosen.append(context.likeliest(context.passage(question), answers))
    return chosen


@pytest.mark.parametrize("most", [2, 64])
def test_many_questions_are_weighed_as_each_alone(context, monkeypatch, most):
    monkeypatch.setattr(weighing, "MOST_TEXTS", most)
    before = context.num_tokens
    assert context.likeliest_each(QUESTIONS, ANSWERS) == one_by_one(context)
    assert context.num_tokens == before


def test_where_texts_cannot_be_read_together_they_are_read_in_turn(context, monkeypatch):
    together = context.likeliest_each(QUESTIONS, ANSWERS)
    monkeypatch.setattr(weighing, "why_not_static_text", lambda *_: "as a test wants it")
    assert context.likeliest_each(QUESTIONS, ANSWERS) == together


def test_beginnings_that_answers_share_are_read_once():
    read = []

    def logits(texts):
        read.extend(texts)
        yield torch.zeros(len(texts), 100)

    assert weighing.likeliest_each([[1, 2]], [[[3, 4, 9], [3, 5, 9], [3, 9]]], read=logits) == [2]
    assert read == [[1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5]]


def test_logits_that_are_not_finite_are_refused():
    broken = torch.full((1, 9), float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        weighing.likeliest_each([[1]], [[[2]]], read=lambda _: iter([broken]))
