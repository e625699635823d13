"""The samples of a run to show, whichever task wrote it."""

from dataclasses import dataclass
from pathlib import Path

from videonsa.errors import UsageError
from videonsa.evals.field.sample_log import PATTERN
from videonsa.evals.field.scored_run import (
    DEMONSTRATION,
    NOT_COMPARABLE,
    SCORES,
    earlier_state,
    find_config,
    read_scores,
)
from videonsa.evals.field.scoring.line_scores import LineScore
from videonsa.evals.field.shown import ShownSample
from videonsa.evals.field.shown_field import field_samples
from videonsa.evals.journal import SAMPLES


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRun:
    """All samples of a run, and what holds for all."""

    title: str
    samples: tuple[ShownSample, ...]
    notes: tuple[str, ...] = ()


def read_shown_run(folder: Path) -> ShownRun:
    """A run of `eval benchmark` or `eval synthetic`.

    Raises:
        UsageError: the folder is none.
    """
    if any(folder.glob(PATTERN)):
        return _field_run(folder)
    if (folder / SAMPLES).is_file():
        return _suite_run(folder)
    raise UsageError(f"{folder} is no run: want a folder that 'videonsa eval' wrote with --out")


def _field_run(folder: Path) -> ShownRun:
    """Also of a run that another program started or that is not scored yet."""
    scores: dict[str, tuple[LineScore, ...]] = {}
    title, notes = folder.resolve().name, []
    config = find_config(folder)
    if config is not None:
        title = f"{config.benchmark}: {config.model} with {config.method}, recipe {config.recipe}"
        notes += [f"Differs from the recipe: {one}." for one in config.differences]
        if config.demonstration:
            notes.append(f"{NOT_COMPARABLE}: {DEMONSTRATION}.")
    if (folder / SCORES).exists():
        found = read_scores(folder)
        scores = {one.key: one.scores for one in found.lines}
        if config is not None and (earlier := earlier_state(folder, config, found)):
            notes.append(f"{earlier}.")
    else:
        notes.append(f"There is no {SCORES}: 'videonsa eval benchmark' scores.")
    samples = tuple(field_samples(folder, scores))
    return ShownRun(title=title, samples=samples, notes=tuple(notes))


def _suite_run(folder: Path) -> ShownRun:
    from videonsa.evals.field.shown_suite import suite_samples  # which loads torch

    samples = suite_samples(folder)
    return ShownRun(
        title=f"Rendered videos: {folder.resolve().name}",
        samples=tuple(samples),
        notes=("The question stands here without the style in which it was asked.",),
    )
