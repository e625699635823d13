"""The samples of a run to show, whichever task wrote it."""

from dataclasses import dataclass
from pathlib import Path

from videonsa.errors import UsageError
from videonsa.evals.field.sample_log import PATTERN
from videonsa.evals.field.shown import ShownSample
from videonsa.evals.field.shown_field import field_samples
from videonsa.evals.field.shown_suite import suite_samples
from videonsa.evals.journal import SAMPLES, read_run


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
    config = (read_run(folder) or {"config": {}})["config"]
    named = ", ".join(f"{name} {config[name]}" for name in _NAMED if config.get(name))
    samples = field_samples(folder, {})
    return ShownRun(title=named or folder.resolve().name, samples=tuple(samples))


_NAMED = ("recipe", "model", "method")
"""Of the options of a run, what a title says."""


def _suite_run(folder: Path) -> ShownRun:
    samples = suite_samples(folder)
    return ShownRun(
        title=f"Rendered videos: {folder.resolve().name}",
        samples=tuple(samples),
        notes=("The question stands here without the style in which it was asked.",),
    )
