"""A question of a benchmark, as it comes from a task: messages and how to answer them."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from videonsa.evals.field.sample_line import (
    LineMessage,
    LinePart,
    Request,
    SampleKey,
    SampleLine,
    as_json,
)
from videonsa.inference.messages import ImagePart, Message, Part, VideoPart
from videonsa.inference.sampling import AnswerOptions

DIGEST_LETTERS = 16
"""Of the digest of a picture in memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FieldQuestion:
    """One request of a task."""

    task: str
    split: str
    doc_id: int
    index: int = 0
    round: int = 0
    messages: Sequence[Message]
    """The last is the user's; none where the task could not make them."""
    options: AnswerOptions = field(default_factory=AnswerOptions)
    """How tokens are chosen, and which texts end the answer."""
    in_rounds: bool = False
    """Whether it is one round of several."""
    continuation: str | None = None
    """A text that is weighed as the answer, in place of writing one."""
    doc: Mapping[str, Any] = field(default_factory=dict)
    """What the log keeps of the document."""
    notes: Sequence[str] = ()
    """What of the request was ignored or chosen, one line each."""
    failure: str | None = None
    """Why it cannot be asked, in one line."""

    @property
    def key(self) -> SampleKey:
        """Which sample it is."""
        return SampleKey(self.task, self.split, self.doc_id, self.index, self.round)

    @property
    def request(self) -> Request:
        """What is asked for."""
        if self.continuation is not None:
            return "loglikelihood"
        return "rounds" if self.in_rounds else "generate"

    def line_messages(self) -> tuple[LineMessage, ...]:
        """The prompt as the log keeps it."""
        return tuple(
            LineMessage(role=one.role, parts=tuple(map(_line_part, one.parts)))
            for one in self.messages
        )


def otherwise_asked(line: SampleLine, question: FieldQuestion) -> str | None:
    """What an answer in the log was asked with that the question is not; None: nothing.

    Texts and options are compared. Files may have moved; a failure is no answer.
    """
    if line.failure is not None:
        return None
    if line.request != question.request:
        return f"request {line.request}, not {question.request}"
    if _texts(line.messages) != _texts(question.line_messages()):
        return "another prompt"
    if question.continuation is not None:
        return None if question.continuation == line.answer else "another text to weigh"
    for name, value in as_json(question.options).items():
        was = line.generation.get(name)
        if value is not None and was != value:
            return f"{name} {was}, not {value}"
    return None


def _texts(messages: Sequence[LineMessage]) -> list[tuple[str, str]]:
    return [
        (one.role, part.text if part.kind == "text" else part.kind)
        for one in messages
        for part in one.parts
    ]


def _line_part(part: Part) -> LinePart:
    if isinstance(part, str):
        return LinePart(kind="text", text=part)
    text = source_text(part)
    if isinstance(part, ImagePart):
        return LinePart(kind="image", text=text)
    return LinePart(kind="video", text=text, start=part.start, end=part.end)


def source_text(part: ImagePart | VideoPart) -> str:
    """Names an image or a video: its path, or the size and digest of what is in memory."""
    source = part.source
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, Image.Image):
        size = f"{source.width} x {source.height}"
        return f"image in memory, {size}, {_digest(source.convert('RGB').tobytes())}"
    if isinstance(source, np.ndarray | torch.Tensor):
        size = " x ".join(map(str, source.shape))
        return f"frames in memory, {size}, {_digest(np.asarray(source).tobytes())}"
    if isinstance(source, list | tuple) and source:
        texts = [source_text(ImagePart(source=one)) for one in source]
        return f"{len(texts)} frames: {texts[0]} to {texts[-1]}"
    return f"{type(source).__name__} in memory"


def _digest(content: bytes) -> str:
    return f"sha256 {hashlib.sha256(content).hexdigest()[:DIGEST_LETTERS]}"
