"""`python -m tests.fuzz`: hostile command lines, models, media and folders, some by the thousand.

    python -m tests.fuzz --cases 500
    python -m tests.fuzz --cases 5000 --out benchmarks/results/cpu/fuzz.json
    python -m tests.fuzz --case 123 --keep folder

Every case is a command line in a folder of its own, made from the seed and its number alone. It
must end with status 0 or 2, within a bounded time and memory, without a traceback.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Before the libraries are imported: no network, no GPU, no threads that a fork would lose.
os.environ |= {
    **{"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
    **{"OMP_NUM_THREADS": "1", "COLUMNS": "100"},
}

import torch

from tests.fuzz.samples import make_samples, run_quietly
from tests.fuzz.sandbox import MOST_MEGABYTES, MOST_SECONDS, Outcome, run_case
from videonsa.machine import measurement_facts, package_versions


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one, and show everything")
    parser.add_argument("--keep", type=Path, help="with --case: a new folder for its files")
    parser.add_argument("--processes", type=int, default=1, help="cases at the same time")
    parser.add_argument("--out", type=Path, help="the JSON of the result")
    return parser.parse_args()


def main() -> int:
    """Run cases; 1 if any ends as none may."""
    args = parse()
    sys.stdout.reconfigure(errors="backslashreplace")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        scratch = Path(name)
        samples = scratch / "samples"
        samples.mkdir()
        begun = time.monotonic()
        with silent_stderr():
            make_samples(samples)
            warm_up(samples)
        made = time.monotonic() - begun
        if args.case is not None:
            outcome = run_case(args.seed, args.case, samples, scratch / "case")
            if args.keep:
                shutil.copytree(scratch / "case", args.keep, symlinks=True, ignore=_pipes)
            return show(outcome)
        outcomes = []
        with get_context("fork").Pool(args.processes) as pool:
            numbers = range(args.first, args.first + args.cases)
            for outcome in pool.imap(partial(run_next, args.seed, samples), numbers):
                outcomes.append(outcome)
                if outcome.problem:
                    tell(outcome, args.seed)
        seconds = time.monotonic() - begun
    result = summary(outcomes, args, seconds=seconds)
    say(f"{made:.0f} s for the samples, then {json.dumps(result, indent=2)}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result["problems"] else 0


def run_next(seed: int, samples: Path, number: int) -> Outcome:
    """Run a case in the folder of this process."""
    return run_case(seed, number, samples, samples.parent / f"case-{os.getpid()}")


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what libraries say when they are imported to themselves."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def warm_up(samples: Path) -> None:
    """Import here, once, what commands import when they run."""
    for argv in (
        ("ask", "clip.mp4", "What?", "--model", "tiny", "--max-new-tokens", "1"),
        ("plan", "media/frames", "--model", "tiny"),
        ("convert", "tiny", "converted"),
        ("data", "check", "data"),
    ):
        run_quietly(argv, samples)
    shutil.rmtree(samples / "converted")


def show(outcome: Outcome) -> int:
    """Everything about one case."""
    say(json.dumps({**vars(outcome), "out": "", "err": ""}, indent=2))
    say(f"--- stdout\n{outcome.out}\n--- stderr\n{outcome.err}")
    return 1 if outcome.problem else 0


def tell(outcome: Outcome, seed: int) -> None:
    """A case that ended as none may, and how to see it again."""
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    say(
        f"case {outcome.number} ({outcome.kind}): {outcome.problem}\n"
        f"  videonsa {shlex.join(outcome.argv)[:400]}\n"
        + "".join(f"  {done[:200]}\n" for done in (*outcome.done, outcome.streams) if done)
        + "".join(f"  {name}={value}\n" for name, value in outcome.environment.items())
        + "".join(f"  > {line[:400]}\n" for line in lines[-2:])
        + f"  again: python -m tests.fuzz --seed {seed} --case {outcome.number}\n"
    )


def summary(outcomes: list[Outcome], args: argparse.Namespace, *, seconds: float) -> dict[str, Any]:
    """The result as JSON."""
    slowest = max(outcomes, key=lambda outcome: outcome.processor_seconds)
    largest = max(outcomes, key=lambda outcome: outcome.megabytes)
    kinds = sorted({outcome.kind for outcome in outcomes})
    return {
        "machine": measurement_facts(torch.device("cpu"))
        | package_versions("transformers", "av", "pillow"),
        "seed": args.seed,
        "cases": [args.first, args.first + args.cases],
        "seconds": round(seconds, 1),
        "processor_seconds": {
            kind: round(sum(x.processor_seconds for x in outcomes if x.kind == kind), 1)
            for kind in kinds
        },
        "statuses": {
            kind: dict(sorted(Counter(str(x.status) for x in outcomes if x.kind == kind).items()))
            for kind in kinds
        },
        "slowest": {
            **{"case": slowest.number, "seconds": slowest.seconds},
            "processor_seconds": slowest.processor_seconds,
        },
        "largest": {"case": largest.number, "megabytes": largest.megabytes},
        "bounds": {"seconds": MOST_SECONDS, "megabytes": MOST_MEGABYTES},
        "problems": {str(x.number): x.problem for x in outcomes if x.problem},
    }


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]


def say(text: str) -> None:
    """A piece of the report."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
