"""The log of a run: each process writes a file of its own, and all are read as one.

So a run resumes with any number of processes, and a process that is killed loses at most the line
that it was writing.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videonsa.disk import sole_writer
from videonsa.errors import UsageError
from videonsa.evals.field.sample_line import SampleLine, parse_sample_line
from videonsa.evals.journal import (
    Journal,
    Key,
    appending,
    check_same_run,
    digest,
    read_lines,
    read_run,
    write_run,
)

PATTERN = "samples-*.jsonl"


def samples_file(process: int) -> str:
    """The name of the file of a process, by its number."""
    return f"samples-{process}.jsonl"


def read_samples(folder: Path) -> list[SampleLine]:
    """All lines of a run in order of their keys, whichever process wrote them.

    Of two lines about the same sample one with an answer counts: a failure may be asked again.

    Raises:
        UsageError: no such folder, or a file that holds something else.
    """
    names = _names(folder)
    if not names:
        raise UsageError(
            f"{folder} holds no {PATTERN}: want the folder of a run of 'videonsa eval benchmark'"
        )
    lines = _merged(line for name in names for line in _read(folder, name))
    return [lines[key] for key in sorted(lines)]


@contextmanager
def sample_log(folder: Path, *, process: int = 0) -> Iterator[Journal[SampleLine]]:
    """Resume the log of a run: lines of all processes so far, and a place for those of this one.

    Args:
        folder: of the run; made where there is none.
        process: number of this process among those of the run.

    Raises:
        UsageError: another run writes there, or a file holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = samples_file(process)
    with (
        sole_writer(folder, work="a benchmark", part=own),
        appending(folder, parse_sample_line, name=own) as journal,
    ):
        others = [name for name in _names(folder) if name != own]
        lines = [line for name in others for line in _read(folder, name)]
        merged = _merged([*lines, *journal.lines.values()])
        journal.lines.update(merged)
        yield journal


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(PATTERN))


def _read(folder: Path, name: str) -> list[SampleLine]:
    return read_lines(folder, parse_sample_line, name=name)


def _merged(lines: Iterable[SampleLine]) -> dict[Key, SampleLine]:
    merged: dict[Key, SampleLine] = {}
    for line in lines:
        before = merged.get(line.key)
        if before is None or before.answer is None or line.answer is not None:
            merged[line.key] = line
    return merged


@contextmanager
def run_log(
    folder: Path, *, process: int = 0, identity: Mapping[str, Any], machine: Mapping[str, Any]
) -> Iterator[Journal[SampleLine]]:
    """As `sample_log`, of a run whose options stand in `run.json`, which the first process writes.

    Args:
        folder: of the run.
        process: number of this process.
        identity: what all samples of the folder share.
        machine: what the numbers hold for, as `run.json` keeps it.

    Raises:
        UsageError: the folder holds a run with other options; says the first that differs.
    """
    check_same_run(folder, identity)
    with sample_log(folder, process=process) as journal:
        if process == 0 and read_run(folder) is None:
            facts = {"config": dict(identity), "digest": digest(identity), "machine": machine}
            write_run(folder, facts)
        yield journal
