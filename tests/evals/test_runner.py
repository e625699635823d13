"""A task of a few lines runs through runner and journal: resumed, refused, its failures told."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from videonsa.errors import BudgetError, UsageError, VideoError, VideoNSAError
from videonsa.evals.journal import RUN, SAMPLES, check_same_run, read_lines, write_run
from videonsa.evals.runner import run_task
from videonsa.parsing import typed


@dataclass(frozen=True)
class Sum:
    """The line of a sample: `reply` is None where it failed."""

    first: int
    second: int
    reply: int | None
    failure: str | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.first, self.second


class Sums(NamedTuple):
    weight: int
    first: int
    seconds: list[int]


@dataclass
class Adding:
    """First to second: what is asked for a `first` is asked together."""

    size: int
    ask: Callable[[int, int], int]
    base: int = 10
    unit = "sum"

    def config(self) -> dict[str, Any]:
        return {"size": self.size, "base": self.base}

    def identity(self) -> dict[str, Any]:
        return {"base": self.base}

    def parse_line(self, content: Any) -> Sum:
        line: Sum = typed(Sum, content)
        return line

    def groups(self, known: Any) -> Iterator[Sums]:
        answered = {key for key, line in known.items() if line.failure is None}
        for first in range(self.size):
            left = [second for second in range(self.size) if (first, second) not in answered]
            if left:
                yield Sums(len(left), first, left)

    def answer(self, group: Sums) -> Iterator[Sum]:
        for second in group.seconds:
            yield Sum(group.first, second, self.ask(group.first, second))

    def failed(self, group: Sums, error: VideoNSAError) -> Iterator[Sum]:
        if isinstance(error, BudgetError):
            raise error
        for second in group.seconds:
            yield Sum(group.first, second, None, str(error))


def add(first: int, second: int) -> int:
    return first + second


def failing(*pair: int, error: Exception) -> Callable[[int, int], int]:
    def ask(first: int, second: int) -> int:
        if (first, second) == pair:
            raise error
        return first + second

    return ask


def run(task: Adding, folder: Path) -> list[Sum]:
    return run_task(task, folder, machine={"device": "test"}, progress=False)


def test_a_second_task_has_its_lines_in_order_and_its_options_in_the_run(tmp_path: Path) -> None:
    lines = run(Adding(3, add), tmp_path)
    assert [(line.key, line.reply) for line in lines] == [
        ((first, second), first + second) for first in range(3) for second in range(3)
    ]
    assert read_lines(tmp_path, Adding(3, add).parse_line) == lines
    stated = json.loads((tmp_path / RUN).read_text())
    assert stated["config"] == {"size": 3, "base": 10}
    assert stated["machine"] == {"device": "test"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BudgetError("out of memory")])
def test_a_run_that_was_ended_keeps_its_lines_and_resumes_behind_them(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(type(error)):
        run(Adding(3, failing(1, 1, error=error)), tmp_path)
    before = (tmp_path / SAMPLES).read_text()
    assert len(before.splitlines()) == 4
    asked: list[tuple[int, int]] = []
    assert len(run(Adding(3, lambda *pair: asked.append(pair) or add(*pair)), tmp_path)) == 9
    assert asked == [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert (tmp_path / SAMPLES).read_text().startswith(before)


def test_a_failure_is_a_line_with_its_reason_and_the_rest_is_asked(tmp_path: Path) -> None:
    ask = failing(1, 1, error=VideoError("b.mp4 cannot be read"))
    failures = {line.key: line.failure for line in run(Adding(3, ask), tmp_path)}
    assert len(failures) == 9
    assert {key: why for key, why in failures.items() if why} == {
        (1, 1): "b.mp4 cannot be read",
        (1, 2): "b.mp4 cannot be read",
    }
    # Asked again and answered, a sample counts with its last line.
    assert all(line.failure is None for line in run(Adding(3, add), tmp_path))
    assert all(x.failure is None for x in read_lines(tmp_path, Adding(3, add).parse_line))


def test_more_samples_are_the_same_run_and_another_identity_is_refused(tmp_path: Path) -> None:
    run(Adding(2, add), tmp_path)
    assert len(run(Adding(3, add), tmp_path)) == 9
    with pytest.raises(UsageError, match="holds a run with base=10, not 2"):
        run(Adding(3, add, base=2), tmp_path)


def test_of_options_inside_an_option_the_one_that_differs_is_named(tmp_path: Path) -> None:
    def options(**given: int) -> dict[str, object]:
        return {"method": "nsa", "parameters": given or None}

    write_run(tmp_path, {"config": options(block_size=64, window_size=256)})
    check_same_run(tmp_path, options(block_size=64, window_size=256))
    for now, told in (
        (options(block_size=64, window_size=16), r"parameters\.window_size=256, not 16"),
        (options(block_size=64), r"parameters\.window_size=256, not None"),
        (options(), r"parameters=\{.*\}, not None"),
    ):
        with pytest.raises(UsageError, match=f"holds a run with {told}"):
            check_same_run(tmp_path, now)


def test_a_line_of_another_task_is_refused_with_its_number(tmp_path: Path) -> None:
    run(Adding(1, add), tmp_path)
    with (tmp_path / SAMPLES).open("a") as file:
        file.write('{"question": "What flashed?"}\n')
    with pytest.raises(UsageError, match=r"samples\.jsonl, line 2: "):
        run(Adding(1, add), tmp_path)
