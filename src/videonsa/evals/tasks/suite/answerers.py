"""The interface of whoever is asked, and the answerers that need no model."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from videonsa.evals.replies import Cost, Reply
from videonsa.evals.tasks.suite.suite_run import CONDITIONS
from videonsa.models.methods import AttentionMethod
from videonsa.rendered.suite import Script, SuiteQuestion
from videonsa.rendered.suites import read_answer


class Answerer(Protocol):
    """Someone who watches videos and answers."""

    @property
    def method(self) -> AttentionMethod | None:
        """How it attends, no branch ablated; None for one that has no attention."""

    def answers(
        self, script: Script, questions: Sequence[SuiteQuestion], condition: str
    ) -> Iterator[Reply]:
        """Watch a video once and answer questions about it one by one.

        Args:
            script: the video.
            questions: in any number.
            condition: a key of `CONDITIONS`.
        """


class OracleAnswerer:
    """Reads the script instead of the video: right wherever a question can be answered."""

    method = None

    def answers(
        self, script: Script, questions: Sequence[SuiteQuestion], condition: str
    ) -> Iterator[Reply]:
        """The truth where the video is shown, else what a constant guesser says."""
        if CONDITIONS[condition].video != "shown":
            yield from ConstantAnswerer().answers(script, questions, condition)
            return
        for question in questions:
            yield Reply(text=read_answer(script, question.text), cost=Cost())


class ConstantAnswerer:
    """Always the first option: as good as chance where a question is not guessable."""

    method = None

    def answers(
        self, script: Script, questions: Sequence[SuiteQuestion], condition: str
    ) -> Iterator[Reply]:
        """The first option of each question."""
        for question in questions:
            yield Reply(text=question.options[0], cost=Cost())
