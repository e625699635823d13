"""A sample as it is shown: what was asked, which frames, what was answered, and both scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from videonsa.evals.field.scoring.line_scores import LineScore


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownPart:
    """A text of a message, or where an image or a video stands in it."""

    text: str
    """The text; of an image or a video, its file."""
    kind: str = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownMessage:
    """What one role said."""

    role: str
    parts: tuple[ShownPart, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownFrames:
    """What was seen of an image or a video."""

    source: str
    """Its file, or a rendered video in words."""
    seconds: tuple[float, ...]
    """Of each frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSample:
    """One sample of a run."""

    key: str
    task: str
    messages: tuple[ShownMessage, ...]
    frames: tuple[ShownFrames, ...] = ()
    truth: str | None = None
    answer: str | None = None
    failure: str | None = None
    """Why there is no answer."""
    scores: tuple[LineScore, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    """What else is known, in words by name."""

    @property
    def wrong(self) -> bool:
        """Whether there is an answer that a scoring gives less than the full score."""
        values = [one.value for one in self.scores if one.value is not None]
        return self.failure is None and any(value < 1 for value in values)

    @property
    def disagrees(self) -> bool:
        """Whether the scorings differ in their score."""
        return len({one.value for one in self.scores if one.value is not None}) > 1

    @property
    def verdict(self) -> str:
        """In one word or a few: failed, right, wrong, in part, or not scored."""
        values = [one.value for one in self.scores if one.value is not None]
        if self.failure is not None:
            return "failed"
        if not values:
            return "not scored"
        if self.disagrees:
            return "scorings differ"
        return {1.0: "right", 0.0: "wrong"}.get(values[0], "in part")

    def texts(self) -> Iterator[str]:
        """All texts that a search looks at: prompt, truth, answer, parses, failure, files."""
        yield from (part.text for message in self.messages for part in message.parts)
        yield from (one.source for one in self.frames)
        yield from (one.parse for one in self.scores if one.parse is not None)
        yield from (text for text in (self.truth, self.answer, self.failure) if text is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which samples of a run: those for which all that is stated holds."""

    key: str | None = None
    """The whole key, what follows its last slash, or the task and that, as in mlvu_dev/17."""
    task: str | None = None
    text: str | None = None
    """Stands in one of its texts, whatever its case."""
    failed: bool = False
    wrong: bool = False
    disagree: bool = False
    """Of these three, where any is stated, one at least has to hold."""

    def takes(self, sample: ShownSample) -> bool:
        """Whether it is wanted."""
        marks = (
            (self.failed, sample.failure is not None),
            (self.wrong, sample.wrong),
            (self.disagree, sample.disagrees),
        )
        stated = [holds for wanted, holds in marks if wanted]
        last = sample.key.rsplit("/", 1)[-1]
        return (
            self.key in (None, sample.key, last, f"{sample.task}/{last}")
            and self.task in (None, sample.task)
            and (any(stated) or not stated)
            and self._says(sample)
        )

    def _says(self, sample: ShownSample) -> bool:
        if self.text is None:
            return True
        sought = self.text.casefold()
        return any(sought in text.casefold() for text in sample.texts())


def counted(samples: Iterable[ShownSample]) -> dict[str, int]:
    """How many samples have each verdict, the most frequent first."""
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.verdict] = counts.get(sample.verdict, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def sample_text(sample: ShownSample) -> str:
    """A sample for a terminal."""
    lines = [f"== {sample.key}: {sample.verdict}"]
    for message in sample.messages:
        told = "\n".join(_part_text(part) for part in message.parts)
        lines += _entry(message.role, told)
    for frames in sample.frames:
        lines += _entry("frames", f"{frames.source}: {seconds_text(frames.seconds)}")
    if sample.failure is not None:
        lines += _entry("failed", sample.failure)
    if sample.answer is not None:
        lines += _entry("answer", sample.answer or "(empty)")
    if sample.truth is not None:
        lines += _entry("truth", sample.truth)
    for one in sample.scores:
        lines += _entry("score", score_text(one))
    for name, value in sample.facts.items():
        lines += _entry(name, value)
    return "\n".join(lines) + "\n"


def _entry(name: str, text: str) -> list[str]:
    first, *rest = text.split("\n")
    return [f"{name:<11}{first}".rstrip(), *(f"{'':<11}{line}".rstrip() for line in rest)]


def _part_text(part: ShownPart) -> str:
    return part.text if part.kind == "text" else f"<{part.kind} {part.text}>"


def score_text(score: LineScore) -> str:
    """Score and parse of a scoring in words."""
    if score.value is None:
        return f"none by {score.scoring}: {score.note}"
    return f"{score.value:.4g} by {score.scoring}, {parse_text(score)}"


def parse_text(score: LineScore) -> str:
    """What a scoring took for the answer, in words."""
    if score.parse is not None:
        return f"parsed {score.parse!r}"
    return "nothing was parsed" + (", and an option drawn" if score.drawn else "")


MOST_SECONDS = 12
"""Frames whose seconds are told one by one."""


def seconds_text(seconds: Sequence[float]) -> str:
    """Which frames, in seconds: all of a few, else the first, the last and how many."""
    if not seconds:
        return "no frames"
    told = [f"{one:g}" for one in (round(second, 2) for second in seconds)]
    if len(told) > MOST_SECONDS:
        told = [*told[:4], "...", *told[-2:]]
    count = f"{len(seconds)} frame{'s' if len(seconds) > 1 else ''}"
    return f"{count} at {', '.join(told)} s"
