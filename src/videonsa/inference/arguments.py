"""Arguments of wrong kinds, refused in one line each."""

from collections.abc import Collection, Generator, Sequence
from inspect import GEN_RUNNING, getgeneratorstate
from typing import Any

from videonsa.errors import UsageError
from videonsa.video.chat import check_question

_MOST_SHOWN = 60  # characters of a value


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuse what is neither None nor an object of a kind: UsageError."""
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name} came as {type(value).__name__}: want {kind.__name__}")


def check_model(qa: object) -> None:
    """Refuse what is no model that `load` gave: UsageError."""
    from videonsa.inference.engine import VideoQA  # which itself needs sessions

    if not isinstance(qa, VideoQA):
        raise UsageError(f"the model came as {type(qa).__name__}: want what videonsa.load gives")


def check_idle(running: Generator[int] | None) -> None:
    """Refuse while an answer is being written, by another thread or by who calls: UsageError."""
    if running is not None and getgeneratorstate(running) == GEN_RUNNING:
        raise UsageError(
            "the session is writing an answer at this moment: ask one question after the other, or "
            "open a session for each thread"
        )


def check_names(given: Collection[str], known: Collection[str], what: str) -> None:
    """Refuse keywords that are not known: UsageError.

    Args:
        given: their names.
        known: the names there are.
        what: has them, such as "an answer".
    """
    if unknown := [name for name in given if name not in known]:
        raise UsageError(
            f"{', '.join(unknown)}: no option of this call: {what} has {', '.join(known)}"
        )


def check_questions(questions: Any) -> None:
    """Refuse what is no list of questions: UsageError."""
    if isinstance(questions, str) or not isinstance(questions, Sequence) or not questions:
        raise UsageError(
            f"questions came as {repr(questions)[:_MOST_SHOWN]}: want a list of at least one text"
        )
    for question in questions:
        check_question(question)
