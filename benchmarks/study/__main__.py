"""The study, part by part: `python -m benchmarks.study PART --out FOLDER` (docs/study.md)."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.study.archives import unpack
from benchmarks.study.kept_models import keep_pair
from benchmarks.study.parallel_jobs import Call, Clock, call_apart
from benchmarks.study.study_design import Design
from benchmarks.study.study_parts import (
    check_settings,
    evaluate,
    note_time,
    pack_models,
    pack_states,
    prepare,
    read_times,
    train,
)
from benchmarks.study.study_summary import all_answers, summarise
from videonsa.disk import sole_writer, write_atomic
from videonsa.errors import VideoNSAError
from videonsa.machine import measurement_facts

ALL_PARTS = ("prepare", "train", "evaluate", "report")
AGAIN = 75
"""Exit status if time ran out: the same command resumes."""


def main(
    arguments: list[str] | None = None, *, design: Design | None = None, call: Call = call_apart
) -> int:
    """Command line.

    Args:
        arguments: instead of those of the process.
        design: instead of the default design.
        call: runs a command of `videonsa`.

    Returns:
        The exit status: 0, 2 after an error, or `AGAIN`.
    """
    args = _parser().parse_args(arguments)
    design = _changed(design or Design(), args)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        return _run(args, design, call)
    except VideoNSAError as error:
        sys.stderr.write(f"study: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument(
        "part", choices=(*ALL_PARTS, "all", "pack-models", "pack-state", "unpack", "keep")
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--seconds", type=float, help="save and stop within this time; the same command resumes"
    )
    parser.add_argument(
        "--at-once", type=int, default=12, help="processes that run at the same time (12)"
    )
    parser.add_argument("--seeds", help="for example 0,1,2")
    parser.add_argument("--samples", type=int, help="videos of each length")
    parser.add_argument(
        "--scale-time",
        action="store_true",
        help="ask about longer videos with the position ids of training, into study_scaled.json",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[STAGE:]SECTION.KEY=VALUE",
        help="change a setting of the recipes, for example long:optimizer.steps=900",
    )
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the models that are asked")
    parser.add_argument(
        "--runs", default="", help="for pack-state: names of runs, for example long-0-nsa"
    )
    parser.add_argument("--to", type=Path, help="for pack-* and keep: the folder to write")
    parser.add_argument(
        "--from", dest="source", type=Path, help="for unpack: the folder of the archives"
    )
    parser.add_argument("--seed", type=int, default=0, help="for keep: the seed of the pair")
    return parser


def _changed(design: Design, args: argparse.Namespace) -> Design:
    return replace(
        design,
        settings=(*design.settings, *args.set),
        seeds=tuple(map(int, args.seeds.split(","))) if args.seeds else design.seeds,
        samples=args.samples or design.samples,
        scale_time=args.scale_time,
    )


def _run(args: argparse.Namespace, design: Design, call: Call) -> int:
    out: Path = args.out
    if args.part == "unpack":
        sys.stdout.write(f"unpacked: {', '.join(unpack(args.source, base=out))}\n")
        return 0
    if args.part in ("pack-models", "pack-state", "keep"):
        folder = args.to or out / "archives"
        if args.part == "keep":
            written = keep_pair(design, out, folder, seed=args.seed)
        elif args.part == "pack-models":
            written, missing = pack_models(design, out, folder)
            if missing:
                sys.stderr.write(f"not trained yet: {', '.join(missing)}\n")
        else:
            written = pack_states(design, args.runs.split(","), out, folder)
        sys.stdout.writelines(f"{path.stat().st_size:>12,} {path}\n" for path in written)
        return 0
    check_settings(design, out)
    clock = Clock.of(args.seconds)
    with sole_writer(out, work=f"study {args.part}"):
        for part in ALL_PARTS if args.part == "all" else (args.part,):
            if not _do(part, args, design, clock, call):
                sys.stderr.write(f"{part}: time is over; the same command resumes\n")
                return AGAIN
    return 0


def _do(part: str, args: argparse.Namespace, design: Design, clock: Clock, call: Call) -> bool:
    """Do one part; False if time ran out."""
    out: Path = args.out
    begun = time.monotonic()
    if part == "report":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        result = summarise(design, out, machine=measurement_facts(device)) | {
            "times": read_times(out)
        }
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        write_atomic(out / f"{design.name}.json", text.encode())
        write_atomic(out / f"{design.name}_answers.jsonl.gz", all_answers(design, out))
        return True
    step = {"prepare": prepare, "train": train}.get(part)
    if step is None:
        done = evaluate(design, out, at_once=args.at_once, clock=clock, call=call, dtype=args.dtype)
    else:
        done = step(design, out, at_once=args.at_once, clock=clock, call=call)
    note_time(out, part, time.monotonic() - begun, is_done=done)
    return done


if __name__ == "__main__":
    sys.exit(main())
