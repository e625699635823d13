"""The samples of a run to show, whichever task wrote it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videonsa.errors import UsageError
from videonsa.evals.field.shown import ShownSample
from videonsa.evals.field.shown_suite import suite_samples
from videonsa.evals.journal import read_run


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
    run = read_run(folder)
    if run is None:
        raise UsageError(f"{folder} is no run: want a folder that 'videonsa eval' wrote with --out")
    config: Mapping[str, Any] = run["config"]
    if "lengths" not in config:
        raise UsageError(f"{folder} is a run of another kind: want one of eval benchmark")
    return ShownRun(
        title=f"{config['model']} with {config['attention']} on rendered videos",
        samples=tuple(suite_samples(folder)),
        notes=("The question stands here without the style in which it was asked.",),
    )
