"""Asks the samples of a task, group by group, and resumes where an earlier run stopped."""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from videonsa.errors import VideoNSAError
from videonsa.evals.journal import (
    Journal,
    Key,
    LineT,
    appending,
    check_same_run,
    digest,
    read_run,
    write_run,
)


class Group(Protocol):
    """Samples that are asked together: those about one video, which is watched once."""

    @property
    def weight(self) -> int:
        """Its share of the progress, in units of the task."""


GroupT = TypeVar("GroupT", bound=Group)


class Task(Protocol[GroupT, LineT]):
    """What is asked, and of whom. One more task is one more folder in `tasks`."""

    @property
    def unit(self) -> str:
        """What weights count, as the progress bar names it."""

    def config(self) -> Mapping[str, Any]:
        """All options, as `run.json` keeps them."""

    def identity(self) -> Mapping[str, Any]:
        """Those of them that all lines of a folder share: with others it is another run."""

    def parse_line(self, content: Any) -> LineT:
        """A line of `samples.jsonl`; raises ValueError, TypeError or KeyError of a wrong one."""

    def groups(self, known: Mapping[Key, LineT]) -> Iterable[GroupT]:
        """What the lines of a folder do not answer yet."""

    def answer(self, group: GroupT) -> Iterator[LineT]:
        """The line of each sample of a group, as soon as it is answered."""

    def failed(self, group: GroupT, error: VideoNSAError) -> Iterable[LineT]:
        """Lines that say why samples of a group have no answer; or raises, which ends the run.

        Lines of samples that were answered before the error are ignored.
        """


def run_task(
    task: Task[GroupT, LineT], folder: Path, *, machine: Mapping[str, Any], progress: bool = True
) -> list[LineT]:
    """Ask every sample of a task that `folder` does not answer yet.

    Args:
        task: what is asked.
        folder: where `samples.jsonl` and `run.json` are or will be; of one writer.
        machine: what the numbers hold for, as `run.json` keeps it.
        progress: a bar on stderr with the time that is left.

    Returns:
        All lines of the folder, earlier ones too, in order of their keys.

    Raises:
        UsageError: a folder that holds something else.
        VideoNSAError: an error that the task does not record as a failure.
    """
    check_same_run(folder, task.identity())
    facts = {"config": task.config(), "digest": digest(task.identity()), "machine": machine}
    seconds = float((read_run(folder) or {}).get("seconds", 0.0))
    write_run(folder, facts | {"seconds": seconds})
    start = time.monotonic()
    with appending(folder, task.parse_line) as journal:
        try:
            _ask_all(task, journal, progress=progress)
        finally:
            seconds += time.monotonic() - start
            write_run(folder, facts | {"seconds": round(seconds, 1)})
        return [journal.lines[key] for key in sorted(journal.lines)]


def _ask_all(task: Task[GroupT, LineT], journal: Journal[LineT], *, progress: bool) -> None:
    groups = list(task.groups(journal.lines))
    total = sum(group.weight for group in groups)
    with tqdm(
        total=total, unit=task.unit, unit_scale=True, mininterval=1, disable=not progress
    ) as bar:
        for group in groups:
            _ask(task, group, journal)
            bar.set_postfix_str(f"{len(journal.lines)} answers", refresh=False)
            bar.update(group.weight)


def _ask(task: Task[GroupT, LineT], group: GroupT, journal: Journal[LineT]) -> None:
    answered: set[Key] = set()
    try:
        for line in task.answer(group):
            journal.append(line)
            answered.add(line.key)
    except VideoNSAError as error:
        for line in task.failed(group, error):
            if line.key not in answered:
                journal.append(line)
