"""A line of the log: what was asked, what the model was given of it, and what it answered.

All that is scored, shown and compared later is made from these lines alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from videonsa.parsing import typed
from videonsa.video.chat import Role

Request = Literal["generate", "loglikelihood", "rounds"]
"""What is asked for: an answer, how likely a given one is, or an answer in each of many rounds."""


class SampleKey(NamedTuple):
    """Identifies a line; a run has one line per key."""

    task: str
    split: str
    doc_id: int
    """Number of the document in the split of its task."""
    number: int = 0
    """Of the request among those of the document: of an option to weigh, for example."""
    round: int = 0
    """Of several."""

    @property
    def text(self) -> str:
        """In one word, as a person names a sample; number and round where they are not 0."""
        more = f"{self.number}.{self.round}" if self.round else f"{self.number}"
        name = f"{self.task}/{self.split}/{self.doc_id}"
        return f"{name}.{more}" if self.number or self.round else name


@dataclass(frozen=True, kw_only=True, slots=True)
class LinePart:
    """A text, an image or a video in a message, as it was asked."""

    kind: Literal["text", "image", "video"]
    text: str
    """The text; of an image or a video its path, or of one in memory its size and its digest."""
    start: float | None = None
    """Seconds of the stretch of a video; None is its beginning."""
    end: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LineMessage:
    """What one role said, options of a question included."""

    role: Role
    parts: tuple[LinePart, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LineVision:
    """What the model was given of an image or a video."""

    source: str
    """As in `LinePart`."""
    kind: Literal["image", "video"]
    seconds: tuple[float, ...]
    """Of each frame, in the file."""
    timestamps: tuple[float, ...]
    """Of each frame, as position ids count them."""
    grid: tuple[int, int, int]
    """Temporal patches, rows and columns of patches."""
    height: int
    """Pixels of a frame."""
    width: int
    tokens: int
    """That the vision tower gave."""
    read_tokens: int
    """Of these, that the model read; a method may keep some of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleLine:
    """One question, its answer and what it took."""

    task: str
    split: str
    doc_id: int
    index: int = 0
    """The `number` of its key."""
    round: int = 0
    request: Request = "generate"
    messages: tuple[LineMessage, ...]
    """The prompt, with the files of images and videos in their places."""
    generation: dict[str, Any]
    """How tokens were chosen, fully stated; of a failure, what was asked for."""
    doc: dict[str, Any]
    """The document of the data set without images and other objects: truth, options, kinds."""
    method: str
    method_parameters: dict[str, Any] | None
    vision: tuple[LineVision, ...] = ()
    """Images and videos in their order; of a failure none."""
    prompt_tokens: int | None = None
    """That were read; where a method keeps some tokens of a video, fewer than the prompt has."""
    video_tokens: int | None = None
    """Of these, of images and videos."""
    prompt_sha256: str | None = None
    """Of the ids of the whole prompt, int64 in little endian, whatever the method read of them."""
    density: float | None = None
    """Query-key pairs computed for the prompt, as a share of causal dense attention's."""
    answer: str | None = None
    """As the model wrote it; of a likelihood, the text that was weighed. None: it failed."""
    finish: Literal["stop", "length"] | None = None
    new_tokens: int | None = None
    log_probability: float | None = None
    """Of the text that was weighed, the sum over its tokens; None where an answer was written."""
    is_greedy: bool | None = None
    """Whether each of these tokens was the likeliest."""
    notes: tuple[str, ...] = ()
    """What was lost, repeated, ignored or chosen, one line each."""
    failure: str | None = None
    """Why there is no answer, in one line."""
    cached_tokens: int | None = None
    """Of the prompt, those that an earlier question had read."""
    seconds: float = 0.0
    """From the question to its answer, without the videos that earlier questions read."""

    def __post_init__(self) -> None:
        """Refuse a line with neither or both of an answer and a failure: ValueError."""
        if (self.answer is None) == (self.failure is None):
            raise ValueError("a sample has an answer, or a failure that says why there is none")

    @property
    def key(self) -> SampleKey:
        """What the line is about."""
        return SampleKey(self.task, self.split, self.doc_id, self.index, self.round)

    def without_costs(self) -> "SampleLine":
        """Without what hangs on the order in which samples were asked, and on the machine."""
        return replace(self, cached_tokens=None, seconds=0.0)


def parse_sample_line(content: Any) -> SampleLine:
    """A line of the log.

    Raises:
        ValueError, TypeError: it is none.
    """
    line: SampleLine = typed(SampleLine, content)
    return line


def as_json(value: Any) -> Any:
    """A value as it comes back from the log: with lists for tuples."""
    return json.loads(json.dumps(value))


MOST_VALUES = 1000
"""Of a list in a document; longer ones are data, not what a question is scored by."""


def json_values(doc: Mapping[str, Any]) -> dict[str, Any]:
    """What of a document JSON can hold; images, arrays and other objects are left out."""
    kept = ((str(name), _json_value(value)) for name, value in doc.items())
    return {name: value for name, value in kept if value is not _NO_VALUE}


_NO_VALUE = object()


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        number = int(value) if isinstance(value, int) else float(value)
        return number if number == number and abs(number) < 2**63 else str(value)
    if isinstance(value, Mapping):
        return json_values(value)
    if isinstance(value, list | tuple) and len(value) <= MOST_VALUES:
        items = [_json_value(item) for item in value]
        return _NO_VALUE if any(item is _NO_VALUE for item in items) else items
    return _NO_VALUE
