"""A question on its way: what the front hands to the thread of the model, and what comes back."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from videonsa.inference.answer import Answer
from videonsa.inference.messages import Message
from videonsa.inference.sampling import AnswerOptions
from videonsa.models.recorder.protocol import Recorder
from videonsa.server.media import Stamp
from videonsa.server.sessions import Key
from videonsa.video.sampling import SamplingSpec


class Piece(NamedTuple):
    """Text of an answer, as it comes."""

    text: str


class Done(NamedTuple):
    """An answer is complete."""

    answer: Answer
    came_from: str
    """Where the session was kept; "new": nowhere."""
    num_read: int
    """Tokens of the session that were read before."""
    together: int
    """Questions that were answered side by side."""

    samplings: tuple[SamplingSpec, ...]
    """Of the images and videos, in their order."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were read for an earlier request."""
        # Of a method that reads all for every question, a session holds none that are read.
        return min(self.num_read, self.answer.usage.cached_tokens)


class Failed(NamedTuple):
    """There is no answer."""

    error: Exception


Event = Piece | Done | Failed


@dataclass(slots=True, eq=False)
class Job:
    """A question for the thread of the model."""

    messages: tuple[Message, ...]
    question: str | None
    """The text at their end; None where an image or a video is there."""
    key: Key
    """What stands before it."""
    samplings: tuple[SamplingSpec, ...]
    """Of the images and videos, in their order."""
    stamps: Mapping[Path, Stamp]
    """Of their files, when their digests were taken."""
    options: AnswerOptions
    emit: Callable[[Event], None]
    """Called by that thread; does not wait."""
    recorder: Recorder | None = None
    """Collects where the answer looked."""
    release: Callable[[], None] = lambda: None
    """Called once, when its media are needed no more."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    submitted: float = field(default_factory=time.perf_counter)

    def goes_with(self, other: "Job") -> bool:
        """Whether both can be answered side by side: only their questions differ."""
        return (
            (self.key, len(self.messages)) == (other.key, len(other.messages))
            and None not in (self.question, other.question)
            and self.options == other.options
            and self.recorder is None is other.recorder  # which watches one answer
            and "seed" not in self.options  # which repeats what is drawn for one question alone
        )
