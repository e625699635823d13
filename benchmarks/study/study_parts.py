"""The parts of the study: prepare, train, evaluate. Each resumes when it is called again."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.archives import STATE_BYTES, pack
from benchmarks.study.parallel_jobs import Call, Clock, Ended, Job, run_jobs
from benchmarks.study.study_design import FRAME_SIZE, Design, Run, Stage, data_folder
from benchmarks.study.study_summary import is_answered
from videonsa.data.files import json_lines
from videonsa.data.manifest import MANIFEST
from videonsa.errors import UsageError
from videonsa.models.checkpoints.convert import convert
from videonsa.train.reading import read_recipe
from videonsa.train.saving import last_checkpoint

TIMES = "times.jsonl"
STOPPING_SECONDS = 45.0
"""A run stops this long before the deadline: it has to start, finish a step and save."""


def check_settings(design: Design, out: Path) -> None:
    """Read the recipe of every run, with its settings.

    Raises:
        UsageError: a setting names an unknown stage, or is not in the recipe.
    """
    for run in design.all_runs():
        read_recipe(_recipe_of(design, run), settings=design.settings_of(run, out))


def prepare(design: Design, out: Path, *, at_once: int, clock: Clock, call: Call) -> bool:
    """Build the manifests of all stages; True when all are there."""
    jobs = [_building(stage, out) for stage in design.stages]
    return _all(run_jobs(jobs, at_once=at_once, clock=clock, call=call, tell=_tell), out)


def _building(stage: Stage, out: Path) -> Job:
    folder = data_folder(out, stage.name)
    options = ["--model", "embedded", "--min-frames", "0", "--out", str(folder)]
    return Job(
        name=f"data-{stage.name}",
        command=lambda _: ["data", "build", *stage.sources, *options],
        log=_log(out, f"data-{stage.name}"),
        is_done=lambda: (folder / MANIFEST).exists(),
    )


def train(design: Design, out: Path, *, at_once: int, clock: Clock, call: Call) -> bool:
    """Train stage by stage; True when every run has its model.

    Raises:
        UsageError: runs failed.
    """
    for stage in design.stages:
        jobs = [_training(design, run, out) for run in design.runs(stage)]
        if not _all(run_jobs(jobs, at_once=at_once, clock=clock, call=call, tell=_tell), out):
            return False
    return True


def _recipe_of(design: Design, run: Run) -> str:
    return next(stage.recipe_file for stage in design.stages if stage.name == run.stage)


def _training(design: Design, run: Run, out: Path) -> Job:
    def command(seconds: float) -> list[str]:
        settings = design.settings_of(run, out)
        if seconds < float("inf"):
            settings.append(f"run.seconds={max(seconds - STOPPING_SECONDS, 1.0):.1f}")
        chosen = [word for setting in settings for word in ("--set", setting)]
        return ["train", _recipe_of(design, run), *chosen, "--out", str(run.folder(out))]

    return Job(
        name=run.name,
        command=command,
        log=_log(out, run.name),
        is_done=lambda: design.is_done(run, out),
    )


def evaluate(
    design: Design, out: Path, *, at_once: int, clock: Clock, call: Call, dtype: str = "bfloat16"
) -> bool:
    """Ask every twin about the suite's test split; True when all is answered."""
    # The longest videos first: they take longest.
    pairs = [(run, length) for length in sorted(design.lengths)[::-1] for run in design.twins()]
    jobs = [_asking(design, run, length, out, dtype=dtype) for run, length in pairs]
    return _all(run_jobs(jobs, at_once=at_once, clock=clock, call=call, tell=_tell), out)


def _asking(design: Design, run: Run, length: int, out: Path, *, dtype: str) -> Job:
    def command(_: float) -> list[str]:
        return [
            *("eval", "synthetic", "--model", str(run.model(out)), "--dtype", dtype),
            *("--lengths", str(length), "--samples", str(design.samples)),
            *("--conditions", "whole", "--style", "free", "--frame-size", str(FRAME_SIZE)),
            *("--time-scale", str(design.time_scale(length))),
            *("--out", str(design.answers(run, out, length))),
        ]

    name = f"{run.name}-{length}"
    return Job(
        name=name,
        command=command,
        log=_log(out, name),
        is_done=lambda: is_answered(design, run, out, length),
    )


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _log(out: Path, name: str) -> Path:
    return out / "logs" / f"{name}.log"


def _all(ended: dict[str, Ended], out: Path) -> bool:
    """Whether all are done.

    Raises:
        UsageError: some failed; raised when all others have ended.
    """
    failed = [name for name, how in ended.items() if how == "failed"]
    if failed:
        raise UsageError(
            f"failed: {', '.join(failed)}: look into {_log(out, failed[0])}, then start the same "
            "part again"
        )
    return all(how == "done" for how in ended.values())


def note_time(out: Path, part: str, seconds: float, *, is_done: bool) -> None:
    """Append to `times.jsonl` how long a part took this time."""
    line = {"part": part, "seconds": round(seconds, 1), "done": is_done, "ended": time.time()}
    with (out / TIMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_times(out: Path) -> list[dict[str, Any]]:
    """The lines of `times.jsonl`."""
    path = out / TIMES
    if not path.exists():
        return []
    remedy = "delete it: the times are lost, nothing else"
    return [line for line, _ in json_lines(path, read=lambda _, value: dict(value), remedy=remedy)]


def state_of(design: Design, run: Run, out: Path) -> list[Path]:
    """What a run needs to resume elsewhere, or its model if it is done; and its log.

    Raises:
        UsageError: the run has no checkpoint, or needs more than `STATE_BYTES`.
    """
    folders = [one.folder(out) for one in (*design.before(run), run)]
    paths = [path for one in folders for path in one.glob("*") if path.is_file()]
    if run.model(out).is_dir():
        return [*paths, run.model(out)]
    checkpoint = last_checkpoint(run.folder(out))
    if checkpoint is None:
        raise UsageError(f"{run.name} has no checkpoint yet: it would begin anew anywhere")
    # The model that it started from has the tokenizer.
    paths += [checkpoint, *(one.model(out) for one in design.before(run)[-1:])]
    size = sum(x.stat().st_size for path in paths for x in (path, *path.rglob("*")) if x.is_file())
    if size > STATE_BYTES:
        raise UsageError(f"{run.name}: a state of {size} bytes: want at most {STATE_BYTES}")
    return paths


def pack_states(design: Design, names: Sequence[str], out: Path, folder: Path) -> list[Path]:
    """Pack the states of runs, one archive each.

    Raises:
        UsageError: the study has no such run, or as for `state_of`.
    """
    runs = {run.name: run for run in design.all_runs()}
    unknown = [name for name in names if name not in runs]
    if unknown:
        raise UsageError(f"run {unknown[0]}: want some of {', '.join(runs)}")
    return [
        part
        for name in names
        for part in pack(
            state_of(design, runs[name], out), base=out, out=folder, name=f"state-{name}"
        )
    ]


def pack_models(design: Design, out: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Pack the twins' models in bfloat16 into one archive; it unpacks to `models/RUN`.

    Returns:
        The files, and the names of twins that have no model yet.

    Raises:
        UsageError: no twin has a model yet.
    """
    twins = design.twins()
    done = [run for run in twins if run.model(out).is_dir()]
    if not done:
        raise UsageError(f"no twin in {out} has its model yet: train first")
    for run in done:
        convert(run.model(out), out / "models" / run.name, dtype=torch.bfloat16, force=True)
    missing = [run.name for run in twins if run not in done]
    return pack([out / "models"], base=out, out=folder, name="models"), missing
