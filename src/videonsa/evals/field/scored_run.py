"""A run and its scores: `run.json` says what was asked, `scores.json` what the log makes of it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.evals.field.benchmarks import BENCHMARKS
from videonsa.evals.field.recipe import Recipe, stated_recipe
from videonsa.evals.field.sample_line import SampleLine
from videonsa.evals.field.sample_log import PATTERN, read_samples
from videonsa.evals.field.scoring.line_scores import LineScores, Scorer, score_line
from videonsa.evals.field.scoring.rules import RULES
from videonsa.evals.field.scoring.totals import Totals, totals
from videonsa.evals.journal import RUN, digest, read_run
from videonsa.parsing import one_line, read_json_object, typed

SCORES = "scores.json"
NOT_COMPARABLE = "NOT COMPARABLE"
DEMONSTRATION = (
    "the model is the embedded demonstration model, which knows rendered clips of coloured shapes "
    "only"
)
_REMEDY = "run 'videonsa eval benchmark' with this --out again"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run asks, as `run.json` keeps it beside what the plug-in states of the model."""

    benchmark: str
    recipe: str
    """Title of the published recipe."""
    differences: tuple[str, ...]
    """From that recipe, a few words each."""
    settings: dict[str, Any]
    """The recipe with these differences, as `stated_recipe` takes it."""
    settings_digest: str
    model: str
    demonstration: bool
    """Whether it is the embedded demonstration model."""
    method: str
    method_parameters: dict[str, Any] | None
    weights_dtype: str
    limit: int | None
    """Documents of each task, from the first; None is all."""
    batch_size: int
    lmms_eval: str

    @property
    def asked(self) -> Recipe:
        """The settings as a recipe."""
        return stated_recipe(self.settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Of a number of each sample."""

    least: float
    median: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why samples failed."""

    reason: str
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldScores:
    """All that is scored and counted of a run."""

    benchmark: str
    settings_digest: str
    log_digest: str
    """Of the samples and their answers, as they stood in the log."""
    samples: int
    failed: int
    reasons: tuple[Reason, ...]
    """The most frequent first."""
    prompt_tokens: Spread | None
    """Of answered samples, as they were read."""
    video_tokens: Spread | None
    density: Spread | None
    """Share of causal dense attention's query-key pairs that was computed."""
    totals: Totals
    own: dict[str, dict[str, Any]]
    """What lmms-eval aggregates from answered samples, by task and metric."""
    notes: tuple[str, ...]
    lines: tuple[LineScores, ...]


class LmmsScorer(Scorer, Protocol):
    """As `LmmsScoring` of the tasks: scores answers, and aggregates."""

    def totals(self, scores: Sequence[Any]) -> Any:
        """Values by metric, and notes."""


def read_config(folder: Path) -> RunConfig:
    """What a run asks.

    Raises:
        UsageError: it is no run of a benchmark.
    """
    run = read_run(folder)
    if run is None:
        raise UsageError(f"{folder} holds no {RUN}: want the --out of 'videonsa eval benchmark'")
    if "benchmark" not in run["config"]:
        raise UsageError(
            f"{folder / RUN} is of no run of a benchmark: want the --out of 'videonsa eval "
            "benchmark'"
        )
    try:
        names = RunConfig.__dataclass_fields__
        stated = {name: value for name, value in run["config"].items() if name in names}
        config: RunConfig = typed(RunConfig, stated)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{folder / RUN} is of no run of a benchmark ({one_line(error)}): name another folder"
        ) from error
    if config.benchmark not in BENCHMARKS:
        raise UsageError(f"{folder / RUN} names the benchmark {config.benchmark!r}: {_REMEDY}")
    return config


def find_config(folder: Path) -> RunConfig | None:
    """As `read_config`; None of a folder without one, as lmms-eval by itself leaves behind."""
    run = read_run(folder)
    return None if run is None or "benchmark" not in run["config"] else read_config(folder)


def read_scores(folder: Path) -> FieldScores:
    """What `score_run` wrote.

    Raises:
        UsageError: it is not there, or of another version.
    """
    path = folder / SCORES
    content = read_json_object(path, remedy=_REMEDY)
    try:
        scores: FieldScores = typed(FieldScores, content)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be used ({one_line(error)}): {_REMEDY}") from error
    return scores


def earlier_state(folder: Path, config: RunConfig, scores: FieldScores) -> str | None:
    """What to say where `scores.json` is not of the log as it is now; None where it is.

    A run that resumes leaves the scores of the one before until it ends.

    Raises:
        UsageError: a log that holds something else.
    """
    if not any(folder.glob(PATTERN)):
        return f"{SCORES} stands alone: without {PATTERN} nothing says whether it is of all samples"
    lines = _lines_of(config.asked.tasks, read_samples(folder))
    if _log_digest(lines) == scores.log_digest:
        return None
    failed = sum(line.failure is not None for line in lines)
    return (
        f"{SCORES} is of an earlier state of the log, {scores.samples} samples ({scores.failed} "
        f"failed); now {len(lines)} ({failed} failed): 'videonsa eval benchmark --score-only --out "
        f"{folder}' scores them"
    )


def score_run(folder: Path, scorers: Mapping[str, LmmsScorer | str]) -> FieldScores:
    """Score the log of a run under both rules, and write `scores.json`.

    Args:
        folder: of the run.
        scorers: by task; or why there is none.

    Raises:
        UsageError: no run, or a log that holds something else.
    """
    config = read_config(folder)
    wanted = config.asked.tasks
    every = read_samples(folder)
    lines = _lines_of(wanted, every)
    kept = {task: _Kept(scorer) for task, scorer in scorers.items() if not isinstance(scorer, str)}
    scored = tuple(
        score_line(line, lmms=kept.get(line.task) or _why_not(scorers, line.task)) for line in lines
    )
    own = {task: one.totals() for task, one in kept.items() if one.scores}
    answered = [line for line in lines if line.failure is None]
    failures = Counter(line.failure for line in lines if line.failure is not None)
    counted = totals(scored, RULES[config.benchmark])
    ignored = len(every) - len(lines)
    scores = FieldScores(
        benchmark=config.benchmark,
        settings_digest=config.settings_digest,
        log_digest=_log_digest(lines),
        samples=len(lines),
        failed=len(lines) - len(answered),
        reasons=tuple(
            Reason(reason=reason, count=count)
            for reason, count in sorted(failures.items(), key=lambda item: (-item[1], item[0]))
        ),
        prompt_tokens=_spread([line.prompt_tokens for line in answered]),
        video_tokens=_spread([line.video_tokens for line in answered]),
        density=_spread([line.density for line in answered]),
        totals=counted,
        own={task: dict(one.values) for task, one in own.items()},
        notes=(
            *counted.notes,
            *dict.fromkeys(note for one in own.values() for note in one.notes),
            *([f"{ignored} lines of other tasks in the log are left out"] if ignored else []),
        ),
        lines=scored,
    )
    text = json.dumps(asdict(scores), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / SCORES, text + "\n")
    return scores


def _lines_of(tasks: Sequence[str], lines: Sequence[SampleLine]) -> list[SampleLine]:
    return [line for line in lines if line.task in tasks]


def _log_digest(lines: Sequence[SampleLine]) -> str:
    """16 hexadecimal digits."""
    return digest({line.key.text: [line.answer, line.failure] for line in lines})


def _why_not(scorers: Mapping[str, LmmsScorer | str], task: str) -> str:
    found = scorers.get(task, "lmms-eval was not asked")
    return found if isinstance(found, str) else ""


class _Kept:
    """A scorer that keeps what it gave, for lmms-eval's own aggregation."""

    def __init__(self, scorer: LmmsScorer) -> None:
        self._scorer = scorer
        self.scores: list[Any] = []

    def score(self, doc: Mapping[str, Any], doc_id: int, answer: str) -> Any:
        """One answer."""
        found = self._scorer.score(doc, doc_id, answer)
        self.scores.append(found)
        return found

    def totals(self) -> Any:
        """Of all."""
        return self._scorer.totals(self.scores)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(least=min(known), median=median(known), most=max(known))
