"""Intervals and guessers."""

import pytest

from videonsa.evals.scoring import Accuracy, best_constant, exact_match
from videonsa.rendered.clips import ClipQuestion


def test_wilson_interval_equals_published_values() -> None:
    low, high = Accuracy(81, 263).interval  # Newcombe 1998, table I, method 3
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    low, high = Accuracy(0, 20).interval
    assert (low, high) == (0.0, pytest.approx(0.1611, abs=1e-4))


def test_best_constant_may_name_an_answer_or_a_place() -> None:
    answers = [ClipQuestion("order", "", answer, options) for answer, options in (
        ("a", ("a", "b")), ("c", ("c", "d")), ("e", ("e", "f")), ("h", ("g", "h")),
    )]  # fmt: skip
    assert best_constant(answers) == Accuracy(3, 4)


@pytest.mark.parametrize("reply", ["red circle", "The red circle.", " a Red circle "])
def test_articles_case_and_full_stop_do_not_matter(reply: str) -> None:
    assert exact_match(reply, "red circle")


@pytest.mark.parametrize("reply", ["", "red", "red circle blue", "red circle red circle"])
def test_more_or_less_than_the_answer_is_wrong(reply: str) -> None:
    assert not exact_match(reply, "red circle")
