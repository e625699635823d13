"""The study, part by part: `python -m benchmarks.study PART --out FOLDER` (docs/study.md)."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.study.base_model import SIZES, is_base_of, write_base
from benchmarks.study.kept_models import keep_models
from benchmarks.study.parallel_jobs import Call, Clock, Job, call_apart, run_jobs
from benchmarks.study.seed_result import write_seed
from benchmarks.study.study_design import ARMS, Design, base_folder
from benchmarks.study.study_jobs import (
    answering_jobs,
    check_ended,
    check_settings,
    data_jobs,
    training_jobs,
)
from benchmarks.study.study_report import read_seeds, result_text, short_table, summarise
from videonsa.disk import sole_writer, write_atomic
from videonsa.errors import UsageError, VideoNSAError
from videonsa.machine import measurement_facts

PARTS = ("prepare", "train", "evaluate", "report", "all", "keep")
AGAIN = 75
"""Exit status if time ran out: the same command resumes."""


def main(
    arguments: list[str] | None = None, *, design: Design | None = None, call: Call = call_apart
) -> int:
    """Command line.

    Args:
        arguments: instead of those of the process.
        design: instead of the default design.
        call: runs a module.

    Returns:
        The exit status: 0, 2 after an error, or `AGAIN`.
    """
    args = _parser().parse_args(arguments)
    try:
        design = _changed(design or Design(), args)
        args.out.mkdir(parents=True, exist_ok=True)
        return _run(args, design, call)
    except VideoNSAError as error:
        sys.stderr.write(f"study: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--seconds", type=float, help="save and stop within this time; the same command resumes"
    )
    parser.add_argument("--seed", type=_numbers, help="for example 0, or 0,1 (default: 0)")
    parser.add_argument("--size", choices=SIZES, help="of the model (45m)")
    parser.add_argument(
        "--arms",
        help=f"some of {','.join(ARMS)} (the first four), and nsa-N-W: n = N blocks, a window of W",
    )
    parser.add_argument(
        "--videos",
        type=_counts,
        metavar="LENGTH:COUNT,...",
        help="test videos of each length (4096:300,...)",
    )
    parser.add_argument(
        "--trainers", type=int, default=1, help="training runs that share a GPU (1)"
    )
    parser.add_argument(
        "--answerers", type=int, default=6, help="processes that ask one model, on a GPU (6)"
    )
    parser.add_argument(
        "--at-once", type=int, default=32, help="processes that run at the same time (32)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[STAGE:]SECTION.KEY=VALUE",
        help="change a setting of the recipes, for example 16k:optimizer.steps=900",
    )
    parser.add_argument(
        "--from",
        dest="sources",
        type=Path,
        action="append",
        help="for report: a folder with the files of seeds (the one of --out)",
    )
    parser.add_argument("--to", type=Path, help="for keep: the folder to write")
    return parser


def _changed(design: Design, args: argparse.Namespace) -> Design:
    return replace(
        design,
        settings=(*design.settings, *args.set),
        seeds=args.seed or design.seeds,
        size=SIZES[args.size] if args.size else design.size,
        arms=tuple(args.arms.split(",")) if args.arms else design.arms,
        videos=args.videos or design.videos,
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: want numbers such as 0,1") from None


def _counts(text: str) -> tuple[tuple[int, int], ...]:
    """Of each length in tokens a number of videos, ascending."""
    pairs = [pair.split(":") for pair in text.split(",")]
    try:
        return tuple(sorted((int(length), int(count)) for length, count in pairs))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: want LENGTH:COUNT,...") from None


def _run(args: argparse.Namespace, design: Design, call: Call) -> int:
    out: Path = args.out
    if args.part == "report":
        _report(args.sources or [out], out)
        return 0
    if args.part == "keep":
        written = keep_models(design, out, args.to or out / "kept")
        sys.stdout.writelines(f"{path.stat().st_size:>12,} {path}\n" for path in written)
        return 0
    check_settings(design, out)
    clock = Clock.of(args.seconds)
    with sole_writer(out, work=f"study {args.part}"):
        base = base_folder(out)
        if not base.is_dir():
            write_base(design.size, base)
        if not is_base_of(design.size, base):
            raise UsageError(
                f"{out} has a study of models of another shape: want the --size that it was begun "
                "with, or another --out"
            )
        jobs = _jobs(args, design)
        ended = run_jobs(jobs, at_once=args.at_once, clock=clock, call=call, tell=_tell)
        if args.part in ("evaluate", "all"):
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            machine = measurement_facts(device)
            for seed in design.seeds:
                write_seed(design, seed, out, machine=machine)
            _report([out], out)
        if not check_ended(ended, out):
            left = sum(how == "left" for how in ended.values())
            _tell(f"{left} of {len(ended)} jobs are left: the same command resumes")
            return AGAIN
    return 0


def _jobs(args: argparse.Namespace, design: Design) -> list[Job]:
    """What a part has to do; `all` does everything as soon as it can be done."""
    jobs = data_jobs(design, args.out)
    if args.part != "prepare":
        jobs += training_jobs(design, args.out, trainers=args.trainers)
    if args.part in ("evaluate", "all"):
        jobs += answering_jobs(design, args.out, answerers=args.answerers)
    return jobs


def _report(folders: Sequence[Path], out: Path) -> None:
    result = summarise(read_seeds(folders))
    write_atomic(out / "study.json", result_text(result).encode())
    sys.stdout.write(short_table(result))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
