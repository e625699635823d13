"""Tokens a second and MFU of training, before and after, in one run on one GPU.

`python -m benchmarks.study.speed --before SRC --out study_speed.json`, SRC the `src` of an older
commit (`git archive e395e46 src | tar -x -C OLD`). All parts are trained in turn, each in a process
of its own, and again in the opposite order. Padding counts as no token in rates, but in MFU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.study.base_model import SIZES, write_base
from videonsa.data.manifest import read_manifest
from videonsa.data.shapes import ROUNDED_TO
from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.machine import measurement_facts
from videonsa.train.folder import LOG

_ROOT = Path(__file__).parents[2]
RECIPE = _ROOT / "benchmarks/recipes/speed-before.yaml"
VIDEOS = "synthetic:count=600,frames=512"
NEW_PATH = (
    "data.shapes=equal",
    "data.context=131072",
    "data.num_workers=12",
    "run.capture=true",
    "run.precision=bf16_weights",
)
WARM_UP = 10
"""Steps that are not counted."""
_EVERY = 0.25
"""Seconds between two looks at the GPU and at the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A way to train, and whether the older commit does it."""

    name: str
    is_before: bool = False
    settings: tuple[str, ...] = ()
    size: str | None = None
    """Of a model of the study, in place of the embedded one."""


PARTS = (
    Part(name="before, 3M", is_before=True),
    Part(name="after, 3M", settings=NEW_PATH),
    Part(name="after, 3M, dense", settings=(*NEW_PATH, "attention.kind=dense")),
    Part(name="after, 45M", settings=NEW_PATH, size="45m"),
    Part(name="after, 45M, dense", settings=(*NEW_PATH, "attention.kind=dense"), size="45m"),
)


def main(arguments: list[str] | None = None, *, parts: Sequence[Part] = PARTS) -> int:
    """Command line; returns the exit status.

    Args:
        arguments: instead of those of the process.
        parts: what is compared.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.speed", description=__doc__)
    parser.add_argument("--before", type=Path, help="the src folder of the older commit")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--steps", type=int, default=50, help=f"of which {WARM_UP} warm up (50)")
    parser.add_argument("--once", action="store_true", help="not again in the opposite order")
    parser.add_argument("--videos", default=VIDEOS, help="source of the data")
    parser.add_argument("--set", action="append", default=[], help="for all parts")
    args = parser.parse_args(arguments)
    chosen = [part for part in parts if args.before is not None or not part.is_before]
    found: dict[str, list[dict[str, Any]]] = {part.name: [] for part in chosen}
    with tempfile.TemporaryDirectory() as scratch:
        for part in [*chosen, *([] if args.once else chosen[::-1])]:
            source = args.before if part.is_before else _ROOT / "src"
            run = _trained(part, source, Path(scratch), args)
            sys.stderr.write(f"{part.name}: {run['tokens_per_second']:,.0f} tokens a second\n")
            found[part.name].append(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {
        "steps": args.steps,
        "warm_up": WARM_UP,
        "videos": args.videos,
        "before": None if args.before is None else str(args.before),
        "parts": {name: _joined(runs) for name, runs in found.items()},
        "machine": measurement_facts(device),
    }
    write_atomic(args.out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return 0


def _trained(part: Part, source: Path, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train once; rates after the warm-up, and how busy the GPU was.

    Raises:
        UsageError: a command failed.
    """
    data = scratch / ("data-before" if part.is_before else "data")
    if not data.exists():
        options = ["--model", "embedded", "--min-frames", "0", "--out", str(data)]
        _wait(_start(source, ["data", "build", args.videos, *options], data.with_suffix(".log")))
    settings = [f"data.manifest={data}", f"optimizer.steps={args.steps}", *part.settings]
    if part.size is not None:
        base = scratch / part.size
        if not base.exists():
            write_base(SIZES[part.size], base)
        settings.append(f"model.base={base}")
    chosen = [word for one in (*settings, *args.set) for word in ("--set", one)]
    out = scratch / f"run-{time.monotonic_ns()}"
    command = ["train", str(RECIPE), *chosen, "--out", str(out)]
    process = _start(source, command, out.with_suffix(".log"))
    busy: list[float] = []
    while process.poll() is None:
        time.sleep(_EVERY)
        steps = [line["step"] for line in _logged(out)]
        if steps and WARM_UP <= steps[-1] < args.steps:
            busy += _utilisation()
    _wait(process)
    lines = _logged(out)
    kept = [line for line in lines if line["step"] > WARM_UP]
    padding = _padding(data) if "data.shapes=equal" in part.settings else 0.0
    rate = median(line["tokens_per_second"] for line in kept)
    return {
        "tokens_per_second": (1 - padding) * rate,
        "padding": padding,
        "every": [round((1 - padding) * line["tokens_per_second"]) for line in kept],
        "mfu": median(line["mfu"] for line in kept) if "mfu" in kept[0] else None,
        "tokens_a_step": round(lines[-1]["tokens"] / lines[-1]["step"]),
        "busy": sum(busy) / len(busy) if busy else None,
    }


def _padding(data: Path) -> float:
    """The share of padding in packs of equal shape, of videos of one length."""
    lengths = read_manifest(data).column("tokens")
    return 1 - float(lengths.mean()) / (-(-int(lengths.max()) // ROUNDED_TO) * ROUNDED_TO)


def _joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All runs of a part: medians, and the lowest and highest rate of a few steps."""
    every = [rate for run in runs for rate in run["every"]]
    rates = {
        name: median(found) if (found := [run[name] for run in runs if run[name]]) else None
        for name in ("tokens_per_second", "padding", "mfu", "tokens_a_step", "busy")
    }
    return rates | {"lowest": min(every), "highest": max(every), "runs": list(runs)}


def _start(source: Path, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    environment = ["env", f"PYTHONPATH={source}", "OMP_NUM_THREADS=1"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*environment, sys.executable, "-m", "videonsa", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _wait(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        words = process.args if isinstance(process.args, list) else [process.args]
        raise UsageError(f"failed: {' '.join(map(str, words))}: run it alone to see why")


def _logged(out: Path) -> list[dict[str, Any]]:
    """The lines of a run so far that have rates."""
    path = out / LOG
    if not path.exists():
        return []
    lines = [
        json.loads(line)
        for line in path.read_text("utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [line for line in lines if "tokens_per_second" in line]


def _utilisation() -> list[float]:
    """The share of time in which the first GPU computed lately; none without a GPU."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i0"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [float(told.split()[0]) / 100]
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return []


if __name__ == "__main__":
    sys.exit(main())
