"""Asks the suite of an answerer, one line a question, and goes on where an earlier run stopped."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.evals.conditions import Condition
from videonsa.evals.tasks.suite.answerers import Answerer, Reply
from videonsa.evals.tasks.suite.config import CONDITIONS, SuiteRun, Task
from videonsa.evals.tasks.suite.journal import (
    RUN,
    Journal,
    Key,
    Line,
    appending,
    check_same_run,
    read_run,
)
from videonsa.evals.tasks.suite.scoring import judge
from videonsa.models.config import spec_to_dict
from videonsa.ops.spec import NSASpec
from videonsa.rendered.suite import Script, SuiteQuestion, make_script, oracle, questions_of

_TEXT_TOKENS = 64
"""For the progress bar: what a question without a video counts."""


def run_suite(
    run: SuiteRun,
    answerer: Answerer,
    folder: Path,
    *,
    spec: NSASpec | None,
    machine: dict[str, Any],
    progress: bool = True,
) -> list[Line]:
    """Ask every question of a run that `folder` does not answer yet.

    Args:
        run: what is asked.
        answerer: who is asked.
        folder: where `samples.jsonl` and `run.json` are or will be.
        spec: of the answerer's attention, all branches on; None without NSA.
        machine: what the numbers hold for, as `run.json` keeps it.
        progress: a bar on stderr, in tokens, with the time that is left.

    Returns:
        All lines of the folder, earlier ones too, in order.

    Raises:
        UsageError: a folder that holds something else.
    """
    check_same_run(folder, run)
    before = read_run(folder) or {}
    facts = {"config": run.to_dict(), "digest": run.digest, "machine": machine}
    seconds = float(before.get("seconds", 0.0))
    write_atomic(folder / RUN, _json(facts | {"seconds": seconds}))
    start = time.monotonic()
    with appending(folder) as journal:
        try:
            _ask_all(run, answerer, journal, spec, progress=progress)
        finally:
            seconds += time.monotonic() - start
            write_atomic(folder / RUN, _json(facts | {"seconds": round(seconds, 1)}))
        return [journal.lines[key] for key in sorted(journal.lines)]


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


class _Group(NamedTuple):
    """Questions about one video under one condition."""

    task: Task
    script: Script
    condition: str
    questions: list[SuiteQuestion]

    @property
    def weight(self) -> int:
        """What it counts for the progress, in tokens."""
        return _TEXT_TOKENS if CONDITIONS[self.condition].video == "absent" else self.task.length


def _ask_all(
    run: SuiteRun, answerer: Answerer, journal: Journal, spec: NSASpec | None, *, progress: bool
) -> None:
    groups = list(_open_groups(run, journal))
    total = sum(group.weight for group in groups)
    with tqdm(
        total=total, unit="token", unit_scale=True, mininterval=1, disable=not progress
    ) as bar:
        for group in groups:
            replies = answerer.answers(group.script, group.questions, group.condition)
            for question, reply in zip(group.questions, replies, strict=True):
                journal.append(_line(run, group, question, reply, spec))
            bar.set_postfix_str(f"{len(journal.lines)} answers", refresh=False)
            bar.update(group.weight)


def _open_groups(run: SuiteRun, journal: Journal) -> Iterator[_Group]:
    """What the journal does not answer yet; the conditions of a video stand together."""
    for task in run.tasks():
        script = make_script(task.seed, spec=task.spec)
        questions = questions_of(script)
        _check_known(journal, task, questions)
        for condition in run.conditions:
            left = [q for q in questions if _key(task, condition, q) not in journal.lines]
            if left:
                yield _Group(task, script, condition, left)


def _key(task: Task, condition: str, question: SuiteQuestion) -> Key:
    return Key(task.length, task.sample, condition, question.kind)


def _check_known(journal: Journal, task: Task, questions: Sequence[SuiteQuestion]) -> None:
    """Refuse to go on where the suite now asks something else than it did."""
    for name in CONDITIONS:
        for question in questions:
            line = journal.lines.get(_key(task, name, question))
            if line is not None and (line.question, line.answer) != (
                question.text,
                question.answer,
            ):
                raise UsageError(
                    f"{question.kind} of video {task.sample} of {task.length} tokens was "
                    f"{line.question!r}, now {question.text!r}: these lines are of another version "
                    "of the suite; name another folder with --out"
                )


def _line(
    run: SuiteRun, group: _Group, question: SuiteQuestion, reply: Reply, spec: NSASpec | None
) -> Line:
    task, script, condition = group.task, group.script, group.condition
    verdict = judge(reply.text, question, run.style)
    return Line(
        length=task.length,
        sample=task.sample,
        seed=script.seed,
        condition=condition,
        kind=question.kind,
        position=_position(script, question),
        evidence=[list(span) for span in question.evidence],
        question=question.text,
        options=list(question.options),
        answer=question.answer,
        oracle=oracle(script, question.text),
        reply=reply.text,
        chosen=verdict.chosen,
        right=verdict.right,
        model=run.model,
        attention=run.attention,
        spec=_spec_of(spec, CONDITIONS[condition]),
        difficulty=run.difficulty,
        frame_size=run.frame_size,
        style=run.style,
        split=run.split,
        **asdict(reply.cost),
    )


def _position(script: Script, question: SuiteQuestion) -> float | None:
    """None where the evidence is strewn over more than half of the video: it has no one place."""
    first, last = question.evidence[0][0], question.evidence[-1][1]
    seconds = script.spec.num_frames / 2
    return question.position if last - first <= seconds / 2 else None


def _spec_of(spec: NSASpec | None, condition: Condition) -> dict[str, Any] | None:
    if spec is None or condition.video == "absent":
        return None
    stated = spec_to_dict(spec.with_options(branches=condition.branches))
    names = ("block_size", "num_selected_blocks", "window_size", "branches", "compressed_mask")
    return {name: stated[name] for name in names}
