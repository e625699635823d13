"""Accuracy of a run: over what was answered and over all, with intervals, and by category."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from videonsa.evals.field.scoring.line_scores import LineScore, LineScores
from videonsa.evals.field.scoring.rules import SCORINGS, Rules
from videonsa.evals.intervals import Interval, mean_over_videos


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """One scoring over some samples, percent."""

    scoring: str
    samples: int
    """That have a score; over all, failures too."""
    value: float | None
    """None: no sample has a score."""
    low: float | None = None
    """End of the 95 % interval by the bootstrap over videos; None where it cannot be told."""
    high: float | None = None
    unparsed: int = 0
    """Answers in which the rule found nothing."""
    drawn: int = 0
    """Answers that were given an option at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryTotals:
    """All scorings of the samples of one kind."""

    field: str
    kind: str
    totals: tuple[Total, ...]
    """Over answered samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """All that is counted of a benchmark."""

    answered: tuple[Total, ...]
    """Of each scoring, over samples with an answer."""
    all: tuple[Total, ...]
    """A failure counts as wrong."""
    categories: tuple[CategoryTotals, ...]
    notes: tuple[str, ...] = ()


def totals(samples: Sequence[LineScores], rules: Rules) -> Totals:
    """Count a benchmark."""
    every = {
        name: [(one, score) for one in samples if (score := _score(one, name)) is not None]
        for name in SCORINGS
    }
    answered = {
        name: [pair for pair in pairs if not pair[0].failed] for name, pairs in every.items()
    }
    return Totals(
        answered=tuple(_total(name, pairs, rules) for name, pairs in answered.items()),
        all=tuple(
            _total(name, pairs if answered[name] else [], rules) for name, pairs in every.items()
        ),
        categories=tuple(_by_category(samples, answered, rules)),
        notes=tuple(_notes(samples, rules)),
    )


_FAILED = LineScore(scoring="", value=0.0)
_Pair = tuple[LineScores, LineScore]


def _score(sample: LineScores, scoring: str) -> LineScore | None:
    """That has a value; None where there is none."""
    if sample.failed:
        return _FAILED
    found = (one for one in sample.scores if one.scoring == scoring and one.value is not None)
    return next(found, None)


def _total(scoring: str, pairs: Sequence[_Pair], rules: Rules | None) -> Total:
    if not pairs:
        return Total(scoring=scoring, samples=0, value=None)
    found = _mean(pairs, _weights([sample for sample, _ in pairs], rules))
    answers = [score for sample, score in pairs if not sample.failed]
    return Total(
        scoring=scoring,
        samples=len(pairs),
        value=found.value,
        low=found.low,
        high=found.high,
        unparsed=sum(score.parse is None for score in answers),
        drawn=sum(score.drawn for score in answers),
    )


def _mean(pairs: Sequence[_Pair], weights: Sequence[float]) -> Interval:
    """The weighted mean in percent; videos are drawn whole."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for (sample, score), weight in zip(pairs, weights, strict=True):
        sums[sample.video] = sums.get(sample.video, 0.0) + 100 * weight * (score.value or 0.0)
        counts[sample.video] = counts.get(sample.video, 0.0) + weight
    return mean_over_videos(list(sums.values()), list(counts.values()), bounds=(0, 100))


def _weights(samples: Sequence[LineScores], rules: Rules | None) -> list[float]:
    """By which a mean over samples is the benchmark's mean: 1 each, or kinds count the same."""
    if rules is None or rules.mean_of is None:
        return [1.0] * len(samples)
    kinds = [_kind(sample, rules.mean_of) for sample in samples]
    wholes = [rules.parts.get(kind, kind) for kind in kinds]
    members = Counter(kinds)
    parts = Counter(rules.parts.get(kind, kind) for kind in members)
    return [1 / (parts[whole] * members[kind]) for kind, whole in zip(kinds, wholes, strict=True)]


def _kind(sample: LineScores, field: str) -> str:
    return next(iter(sample.categories.get(field, ("",))))


def _by_category(
    samples: Sequence[LineScores], answered: Mapping[str, Sequence[_Pair]], rules: Rules
) -> list[CategoryTotals]:
    found = []
    for field in rules.categories:
        kinds = {kind for sample in samples for kind in sample.categories.get(field, ())}
        for kind in sorted(kinds, key=_number_first):
            chosen = {
                name: [pair for pair in pairs if kind in pair[0].categories.get(field, ())]
                for name, pairs in answered.items()
            }
            counted = tuple(_total(name, pairs, None) for name, pairs in chosen.items())
            found.append(CategoryTotals(field=field, kind=kind, totals=counted))
    return found


def _number_first(kind: str) -> tuple[bool, float, str]:
    """Sorts lengths by their size, and names after them."""
    is_number = kind.replace(".", "", 1).isdecimal()
    return not is_number, float(kind) if is_number else 0.0, kind


def _notes(samples: Sequence[LineScores], rules: Rules) -> list[str]:
    """What stands in the way of comparing with a published number, one line each."""
    notes = []
    if rules.mean_of is not None:
        kinds = {_kind(one, rules.mean_of) for one in samples if not one.failed}
        wholes = {rules.parts.get(kind, kind) for kind in kinds}
        partial = [whole for part, whole in rules.parts.items() if part not in kinds]
        if rules.kinds is not None and len(wholes) < rules.kinds:
            notes.append(
                f"{len(wholes)} of {rules.kinds} kinds of {rules.mean_of} have an answer: the mean "
                "is over these, and lmms-eval counts the others as 0 or has no value"
            )
        elif partial:
            notes.append(
                f"{partial[0]} lacks a part: its mean is over those that have an answer, and "
                "lmms-eval has no value"
            )
    reasons = Counter(
        (score.scoring, score.note)
        for sample in samples
        for score in sample.scores
        if score.value is None and score.note
    )
    notes += [
        f"{count} answers have no score by {scoring}: {note}"
        for (scoring, note), count in reasons.items()
    ]
    return notes
