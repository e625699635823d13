"""The comparison of baselines: `python -m benchmarks.baselines PART --out OUT`.

`ask` asks the models of a study, several processes on each GPU, and reports; `report` puts
together what is there.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.baselines.asking import asked_all, parse_line
from benchmarks.baselines.baseline_design import (
    Comparison,
    add_comparison_options,
    comparison_options,
    read_comparison,
)
from benchmarks.baselines.baseline_result import Facts, summarise
from benchmarks.study.parallel_jobs import Call, Clock, Job, call_apart, run_jobs
from benchmarks.study.study_jobs import check_ended
from videonsa.disk import sole_writer, write_atomic
from videonsa.errors import UsageError, VideoNSAError
from videonsa.evals.journal import SAMPLES, read_lines
from videonsa.machine import measurement_facts

RESULT = "baselines.json"
FACTS = "asked.json"
AGAIN = 75
"""Exit status if time ran out: the same command resumes."""
LEAST_SECONDS = 30.0
"""With less time left, a process does not start: its model has to be loaded."""


def main(arguments: list[str] | None = None, *, call: Call = call_apart) -> int:
    """Command line.

    Args:
        arguments: instead of those of the process.
        call: runs a module.

    Returns:
        The exit status: 0, 2 after an error, or `AGAIN`.
    """
    args = _parser().parse_args(arguments)
    try:
        comparison = read_comparison(args)
        if args.part == "report":
            _report(comparison, args.out)
            return 0
        return _ask(args, comparison, call)
    except VideoNSAError as error:
        sys.stderr.write(f"baselines: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__)
    parser.add_argument("part", choices=("ask", "report"))
    parser.add_argument("--out", type=Path, required=True, help="folder of answers and result")
    parser.add_argument("--study", type=Path, help="for ask: folder of a study that was trained")
    parser.add_argument(
        "--models", help="for ask: ARM=FOLDER,... in place of --study", metavar="ARM=FOLDER,..."
    )
    parser.add_argument(
        "--seconds", type=float, help="stop within this time; the same command resumes"
    )
    parser.add_argument("--answerers", type=int, default=6, help="processes on a GPU (6)")
    parser.add_argument("--at-once", type=int, default=32, help="processes in parallel (32)")
    add_comparison_options(parser)
    return parser


def _models(args: argparse.Namespace, comparison: Comparison) -> dict[str, Path]:
    """Folders of the models of all arms that are asked.

    Raises:
        UsageError: an arm without one.
    """
    pairs = [pair.partition("=") for pair in (args.models or "").split(",") if pair]
    models = {arm: Path(folder) for arm, _, folder in pairs}
    for arm in comparison.arms():
        if arm not in models and args.study is not None:
            models[arm] = comparison.model(arm, args.study)
        if arm not in models or not models[arm].is_dir():
            where = models.get(arm, "nowhere")
            raise UsageError(
                f"the model of arm {arm!r} is at {where}: want --study with that arm trained, or "
                f"--models {arm}=FOLDER"
            )
    return models


def _ask(args: argparse.Namespace, comparison: Comparison, call: Call) -> int:
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    models = _models(args, comparison)
    with sole_writer(out, work="baselines ask"):
        jobs = [
            _job(comparison, arm, models[arm], out, part=f"{part}/{args.answerers}")
            for part in range(args.answerers)
            for arm in comparison.arms()
        ]
        clock = Clock.of(args.seconds)
        ended = run_jobs(jobs, at_once=args.at_once, clock=clock, call=call, tell=_tell)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        facts = {"machine": measurement_facts(device), "answerers": args.answerers}
        write_atomic(out / FACTS, json.dumps(facts, indent=1).encode())
        _report(comparison, out)
        if not check_ended(ended, out):
            _tell("time ran out: the same command resumes")
            return AGAIN
    return 0


def _job(comparison: Comparison, arm: str, model: Path, out: Path, *, part: str) -> Job:
    name = f"{arm}-{part.replace('/', '-of-')}"
    folder = out / "answers" / name
    given = [
        *("--model", str(model), "--arm", arm, "--out", str(folder), "--part", part),
        *comparison_options(comparison),
    ]

    def command(seconds: float) -> list[str]:
        left = [] if seconds == float("inf") else ["--seconds", f"{seconds - 10:.1f}"]
        return ["benchmarks.baselines.asking", *given, *left]

    return Job(
        name=name,
        command=command,
        log=out / "logs" / f"{name}.log",
        is_done=lambda: asked_all(comparison, arm, part, folder),
        share=1 / int(part.partition("/")[2]),
        least_seconds=LEAST_SECONDS,
    )


def _report(comparison: Comparison, out: Path) -> None:
    """Write the result of what was asked so far.

    Raises:
        UsageError: nothing was.
    """
    folders = sorted(path.parent for path in out.glob(f"answers/*/{SAMPLES}"))
    lines = {line.key: line for folder in folders for line in read_lines(folder, parse_line)}
    if not lines or not (out / FACTS).exists():
        raise UsageError(f"{out} has no answers: run 'ask' first")
    facts = Facts(**json.loads((out / FACTS).read_text("utf-8")))
    result = summarise(comparison, [lines[key] for key in sorted(lines)], facts)
    write_atomic(out / RESULT, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    for sentence in result["sentences"].values():
        sys.stdout.write(f"- {sentence}\n")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
