"""A question on its way: what the front hands to the thread of the model, and what comes back."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from videonsa.inference.answer import Answer
from videonsa.inference.sampling import AnswerOptions
from videonsa.server.sessions import Media, Part


class Piece(NamedTuple):
    """Text of an answer, as it comes."""

    text: str


class Done(NamedTuple):
    """An answer is complete."""

    answer: Answer
    num_cached: int
    """Tokens before the question that a session held when its turn came."""
    together: int
    """Questions that were answered side by side."""
    parts: tuple[Part, ...]
    """What stands before the question."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were read for an earlier request."""
        # Of a method that reads all for every question, a session holds none that are read.
        return min(self.num_cached, self.answer.usage.cached_tokens)


class Failed(NamedTuple):
    """There is no answer."""

    error: Exception


Event = Piece | Done | Failed


@dataclass(slots=True, eq=False)
class Job:
    """A question for the thread of the model."""

    system: str
    parts: tuple[Part, ...]
    question: str
    options: AnswerOptions
    media: Media
    emit: Callable[[Event], None]
    """Called by that thread; does not wait."""
    release: Callable[[], None] = lambda: None
    """Called once, when its media are needed no more."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    submitted: float = field(default_factory=time.perf_counter)

    def goes_with(self, other: "Job") -> bool:
        """Whether both can be answered side by side: only their questions differ."""
        return (
            (self.system, self.parts) == (other.system, other.parts)
            and self.options == other.options
            and "seed" not in self.options  # which repeats what is drawn for one question alone
        )
