"""A line of `samples.jsonl`: a question of the suite, its answer and what it cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from videonsa.evals.journal import read_lines
from videonsa.evals.tasks.suite.suite_run import CONDITIONS
from videonsa.parsing import typed
from videonsa.rendered.suites import KINDS

NSA_PARAMETERS = (
    "block_size",
    "num_selected_blocks",
    "window_size",
    "branches",
    "compressed_mask",
)
"""What a line says of NSA; of other methods it says all."""


class SuiteKey(NamedTuple):
    """Identifies a line; a folder has one line per key."""

    length: int
    sample: int
    condition: str
    kind: str
    number: int
    """Of the question among those of its kind about the video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteLine:
    """One question, its answer and what it took: all that the report is made from."""

    length: int
    """Tokens asked for; `video_tokens` are those there were."""
    sample: int
    seed: int
    condition: str
    kind: str
    position: float | None
    """Where the evidence lies, 0 to 1; None where it is strewn over more than half of the video."""
    evidence: list[list[float]]
    """Seconds [start, end) of each place."""
    question: str
    options: list[str]
    answer: str
    oracle: str
    reply: str
    chosen: str | None
    right: bool
    video_tokens: int
    prompt_tokens: int
    attended_keys: int | None
    attention_fraction: float | None
    encode_seconds: float | None
    prefill_seconds: float | None
    answer_seconds: float | None
    peak_bytes: int | None
    model: str
    attention: str
    spec: dict[str, Any] | None
    """The parameters of the attention, `branches` those not ablated; None if it has none."""
    difficulty: str
    frame_size: int
    style: str
    split: str
    suite: int = 1
    number: int = 0
    """Of the question among those of its kind about the video."""
    likeliest: str | None = None
    """The option with the highest probability, where it was asked for beside a free answer."""

    @property
    def key(self) -> SuiteKey:
        """What the line is about."""
        return SuiteKey(self.length, self.sample, self.condition, self.kind, self.number)


def read_suite_lines(folder: Path) -> list[SuiteLine]:
    """All lines of a folder of the suite: see `read_lines`."""
    return read_lines(folder, parse_line)


def parse_line(content: Any) -> SuiteLine:
    """A line from its JSON value.

    Raises:
        ValueError: it is no line of this suite.
    """
    line: SuiteLine = typed(SuiteLine, content)
    unknown = line.condition not in CONDITIONS or line.kind not in KINDS.get(line.suite, ())
    if unknown or line.answer not in line.options:
        raise ValueError("it is no line of this suite")
    return line
