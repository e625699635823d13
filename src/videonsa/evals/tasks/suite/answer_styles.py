"""How a question is put to a model, and when a reply is right.

`free`: the question as it stands; the reply has to be the answer. `choice`: the options follow,
each with a letter; the reply has to be one letter, one option, or a letter with its own option.
Case, spaces, commas, a leading article, brackets around a letter and a full stop do not matter.
Anything else, including a sentence around the answer, names no option: it is wrong and counted.

`likeliest`: the question as it stands, and no reply: chosen is the option that the model would
write, and end, with the highest probability. This scores models that do not answer in the words of
the options.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from videonsa.errors import UsageError
from videonsa.evals.scoring import words_of
from videonsa.evals.tasks.suite.suite_run import Style
from videonsa.rendered.suite import SuiteQuestion

_LETTER = re.compile(r"\(?([a-z])\)?(?:[.):]|$)\s*(.*)", re.IGNORECASE | re.DOTALL)


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
    chosen = _option_named(reply, question.options)
    if style == "choice" and chosen is None:
        chosen = _option_lettered(reply, question.options)
    return Verdict(chosen, chosen == question.answer)


def _lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    if len(options) > len(ascii_uppercase):
        raise UsageError(
            f"{len(options)} options in one question: want at most {len(ascii_uppercase)} for "
            "letters; ask in the style 'free'"
        )
    return list(zip(ascii_uppercase, options, strict=False))


def _words(text: str) -> list[str]:
    return words_of(text.replace(",", " "))


def _option_named(text: str, options: Sequence[str]) -> str | None:
    words = _words(text)
    return next((option for option in options if _words(option) == words), None)


def _option_lettered(reply: str, options: Sequence[str]) -> str | None:
    """The option of a letter; None if there is no such option, or another follows the letter."""
    match = _LETTER.fullmatch(reply.strip())
    if match is None:
        return None
    letter, rest = match.groups()
    option = dict(_lettered(options)).get(letter.upper())
    follows = rest.strip()
    return option if not follows or _option_named(follows, [option or ""]) else None
