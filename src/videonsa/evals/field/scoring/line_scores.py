"""Both scores of a line of the log, with what each rule took for the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from videonsa.errors import DataError, UsageError
from videonsa.evals.field.benchmarks import benchmark_of
from videonsa.evals.field.sample_line import SampleLine
from videonsa.evals.field.scoring.rules import LMMS, PAPER, RULES, paper_rule
from videonsa.parsing import one_line


class Scored(Protocol):
    """What lmms-eval makes of one answer."""

    @property
    def value(self) -> float:
        """From 0 to 1."""

    @property
    def parse(self) -> str | None:
        """What it took for the answer."""

    @property
    def drawn(self) -> bool:
        """Whether it drew an option."""


class Scorer(Protocol):
    """Scores the answers of one task as lmms-eval does."""

    def score(self, doc: Mapping[str, Any], doc_id: int, answer: str) -> Scored:
        """One answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LineScore:
    """What one scoring makes of an answer."""

    scoring: str
    value: float | None = None
    """From 0 to 1; None: not scored, and `note` says why."""
    parse: str | None = None
    """What it took for the answer; None: it found nothing."""
    drawn: bool = False
    """Whether it then drew an option, by a seed made of task and sample."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LineScores:
    """A sample with its scores."""

    key: str
    task: str
    video: str
    """What it is about: samples about the same are drawn together for intervals."""
    categories: dict[str, tuple[str, ...]]
    """Values by the fields that the benchmark reports by."""
    failed: bool
    scores: tuple[LineScore, ...]
    """The paper's, then that of lmms-eval; of a failure none."""


def score_line(line: SampleLine, *, lmms: Scorer | str) -> LineScores:
    """Score a line under both rules.

    Args:
        line: of the log.
        lmms: of the line's task, or why there is none.
    """
    benchmark = benchmark_of(line.task)
    return LineScores(
        key=line.key.text,
        task=line.task,
        video=_video(line),
        categories=_categories(line, RULES[benchmark].categories),
        failed=line.failure is not None,
        scores=() if line.answer is None else _both(line, line.answer, benchmark, lmms),
    )


def _both(
    line: SampleLine, answer: str, benchmark: str, lmms: Scorer | str
) -> tuple[LineScore, ...]:
    if line.request != "generate":
        note = f"an answer of kind {line.request}: benchmarks here have one answer a sample"
        return tuple(LineScore(scoring=name, note=note) for name in (PAPER, LMMS))
    theirs = _lmms_score(line, answer, lmms)
    ours = _paper_score(line, answer, benchmark, theirs)
    if RULES[benchmark].same and theirs.value is not None and ours.value is not None:
        # The same rule: of an answer for want of any, as Tomato's A, only ours knows.
        theirs = replace(theirs, parse=ours.parse)
    return ours, theirs


def _lmms_score(line: SampleLine, answer: str, lmms: Scorer | str) -> LineScore:
    if isinstance(lmms, str):
        return LineScore(scoring=LMMS, note=lmms)
    try:
        found = lmms.score(line.doc, line.doc_id, answer.strip())
    except (DataError, UsageError) as error:
        return LineScore(scoring=LMMS, note=one_line(error))
    except Exception as error:  # lmms-eval's own code, on a document or an answer it cannot take
        return LineScore(
            scoring=LMMS, note=f"lmms-eval failed: {type(error).__name__}: {one_line(error)}"
        )
    return LineScore(scoring=LMMS, value=found.value, parse=found.parse, drawn=found.drawn)


def _paper_score(line: SampleLine, answer: str, benchmark: str, theirs: LineScore) -> LineScore:
    rules = RULES[benchmark]
    rule = paper_rule(benchmark, seed=f"{line.task}/{line.doc_id}")
    if rule is None:
        if not rules.same:
            return LineScore(scoring=PAPER, note=f"no rule of the paper's time: {rules.differs}")
        return LineScore(
            scoring=PAPER,
            value=theirs.value,
            parse=theirs.parse,
            drawn=theirs.drawn,
            note=theirs.note,
        )
    try:
        found = rule(line.doc, answer.strip())
    except (KeyError, TypeError, ValueError, IndexError) as error:
        note = f"the document is not as {benchmark} publishes it: {type(error).__name__} {error}"
        return LineScore(scoring=PAPER, note=note)
    return LineScore(scoring=PAPER, value=found.value, parse=found.parse, drawn=found.drawn)


def _video(line: SampleLine) -> str:
    parts = [part for message in line.messages for part in message.parts]
    seen = [part.text for part in parts if part.kind != "text"]
    return " ".join(seen) or line.key.text


def _categories(line: SampleLine, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name in names:
        value = line.task if name == "task" else line.doc.get(name)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            found[name] = tuple(str(one) for one in values)
    return found
