"""Who is asked: anything with `answers`. Here those that need no model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from videonsa.evals.tasks.suite.config import CONDITIONS
from videonsa.rendered.suite import Script, SuiteQuestion, oracle


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What an answer took; None where nothing was computed or it cannot be told."""

    video_tokens: int = 0
    prompt_tokens: int = 0
    """Video and text."""
    attended_keys: int | None = None
    """Keys of a vision row: those of the selected blocks and the window that are on."""
    attention_fraction: float | None = None
    """Share of dense causal attention, 2K / (L - 1), at most 1."""
    encode_seconds: float | None = None
    """Rendering and vision tower; once a video, whatever the condition."""
    prefill_seconds: float | None = None
    """Once a video and condition."""
    answer_seconds: float | None = None
    peak_bytes: int | None = None
    """On a GPU of its allocator, else the resident size; the highest since the video began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The text of an answer and what it took."""

    text: str
    cost: Cost


class Answerer(Protocol):
    """Someone who watches videos and answers."""

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

    def answers(
        self, script: Script, questions: Sequence[SuiteQuestion], condition: str
    ) -> Iterator[Reply]:
        """The truth where the video is shown, else what a constant guesser says."""
        if CONDITIONS[condition].video != "shown":
            yield from ConstantAnswerer().answers(script, questions, condition)
            return
        for question in questions:
            yield Reply(text=oracle(script, question.text), cost=Cost())


class ConstantAnswerer:
    """Always the first option: as good as chance where a question is not guessable."""

    def answers(
        self, script: Script, questions: Sequence[SuiteQuestion], condition: str
    ) -> Iterator[Reply]:
        """The first option of each question."""
        for question in questions:
            yield Reply(text=question.options[0], cost=Cost())
