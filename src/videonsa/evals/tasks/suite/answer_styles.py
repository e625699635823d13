"""How a question is put to a model, and when a reply is right.

`free`: the question as it stands; the reply has to be the answer. `choice`: the options follow,
each with a letter; the reply has to be one letter, one option, or a letter with its own option.
Case, spaces, commas, a leading article, brackets around a letter and a full stop do not matter.
Anything else, including a sentence around the answer, names no option: it is wrong and counted.

`likeliest`: the question as it stands, and no reply: chosen is the option that the model would
write, and end, with the highest probability. This scores models that do not answer in the words of
the options.
"""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from videonsa.errors import UsageError
from videonsa.evals.scoring import option_lettered, option_named
from videonsa.evals.tasks.suite.suite_run import Style
from videonsa.rendered.suite import SuiteQuestion


class Verdict(NamedTuple):
    """What a reply chose."""

    chosen: str | None
    """An option; None where the reply names none."""
    right: bool


def prompt_text(question: SuiteQuestion, style: Style) -> str:
    """The question in the words that a model reads."""
    if style != "choice":
        return question.text
    lines = [f"{letter}. {option}" for letter, option in _lettered(question.options)]
    return "\n".join([question.text, *lines, "Answer with the letter of one option only."])


def judge(reply: str, question: SuiteQuestion, style: Style) -> Verdict:
    """Whether a reply is the answer; strict, see the module."""
    chosen = option_named(reply, question.options)
    if style == "choice" and chosen is None:
        chosen = option_lettered(reply, question.options)
    return Verdict(chosen, chosen == question.answer)


def _lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    if len(options) > len(ascii_uppercase):
        raise UsageError(
            f"{len(options)} options in one question: want at most {len(ascii_uppercase)} for "
            "letters; ask in the style 'free'"
        )
    return list(zip(ascii_uppercase, options, strict=False))
