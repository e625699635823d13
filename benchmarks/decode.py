"""Time and memory of `read_video`: N workers, one worker, and a bare PyAV loop.

    python benchmarks/decode.py --output benchmarks/results/cpu/decode.json
    python benchmarks/decode.py --workers 8 --pairs 3

All take the same frames (1 per second) at the same size from a 10-minute 720p h264 file, which is
rendered once and kept in the temporary folder. Runs alternate (ours, one, bare, ours, ...), each in
a process of its own. Seconds leave imports out; resident memory is the peak of the whole process.
One worker decodes in one thread; the bare loop lets the decoder use all cores. The frames of one
worker and of N are compared bit by bit.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import av

from videonsa.bench.sample_video import FPS, HEIGHT, WIDTH, sample_video
from videonsa.disk import write_atomic
from videonsa.machine import cpu_model, package_versions, usable_cores
from videonsa.video.decode import MOST_WORKERS, probe, read_video
from videonsa.video.sampling import SamplingSpec, plan_sampling

LIMITS = {"time_ratio": 1.15, "resident_mb": 500}


class Clock:
    """Wall time, and the CPU time of all threads (which other load on the machine leaves alone)."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since the clock was made."""
        wall, cpu = self._begin
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def run_ours(path: Path, workers: int) -> dict[str, object]:
    """`read_video` at 1 frame per second."""
    clock = Clock()
    clip = read_video(path, sampling=SamplingSpec(fps=1.0), workers=workers)
    seconds = clock.read()
    digest = hashlib.sha256(clip.frames.numpy()).hexdigest()
    return seconds | {"frames": len(clip.frames), "sha256": digest}


def run_one(path: Path, _: int) -> dict[str, object]:
    """The same with one worker."""
    return run_ours(path, 1)


def run_bare(path: Path, _: int) -> dict[str, object]:
    """The loop one would write by hand: decode all, downscale the wanted frames with swscale."""
    plan = plan_sampling(probe(path), SamplingSpec(fps=1.0))
    clock = Clock()
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.time >= plan.times[len(frames)] - 1e-3:
                small = frame.reformat(width=plan.width, height=plan.height, format="rgb24")
                frames.append(small.to_ndarray())
                if len(frames) == plan.num_frames:
                    break
    return clock.read() | {"frames": len(frames)}


RUNNERS = {"ours": run_ours, "one": run_one, "bare": run_bare}


def measure(runner: str, path: Path, workers: int) -> dict[str, object]:
    """One run in a fresh process."""
    options = ["--runner", runner, "--video", str(path), "--workers", str(workers)]
    command = [sys.executable, __file__, *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def summarise(runs: list[dict[str, float]]) -> dict[str, object]:
    """Median and spread of the runs, and the runs."""
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds_median": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "cpu_seconds_median": statistics.median(run["cpu_seconds"] for run in runs),
        "resident_mb_max": max(run["resident_mb"] for run in runs),
        "frames": runs[0]["frames"],
        "seconds": seconds,
    }


def machine() -> dict[str, object]:
    """What the numbers hold for."""
    measured = ["src/videonsa/video", "benchmarks/decode.py"]
    commit = ["git", "log", "-1", "--format=%h", "--", *measured]
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **package_versions("torch", "av"),
        "commit": subprocess.check_output(commit, text=True, cwd=Path(__file__).parents[1]).strip(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def ratio(over: list[dict[str, object]], under: list[dict[str, object]]) -> dict[str, float]:
    """Time over time, run by run."""
    ratios = [x["seconds"] / y["seconds"] for x, y in zip(over, under, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def compare(path: Path, *, workers: int, pairs: int) -> dict[str, object]:
    """All runners, in turn, `pairs` times."""
    runs: dict[str, list[dict[str, object]]] = {name: [] for name in RUNNERS}
    for _ in range(pairs):
        for name in RUNNERS:
            runs[name].append(measure(name, path, workers))
    if len({run["sha256"] for name in ("ours", "one") for run in runs[name]}) != 1:
        raise SystemExit("the frames depend on the number of workers: no number is written")
    return {
        **{name: summarise(all_runs) for name, all_runs in runs.items()},
        "time_ratio": ratio(runs["ours"], runs["bare"]),
        "workers": workers,
        "workers_speedup": ratio(runs["one"], runs["ours"]),
    }


def main() -> None:
    """Run all, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=min(usable_cores(), MOST_WORKERS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runner:
        run = RUNNERS[args.runner](args.video, args.workers)
        # Linux counts in KiB.
        run["resident_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(run))
        return
    path = sample_video(minutes=args.minutes)
    result = {
        "what": f"{args.minutes} min of {WIDTH}x{HEIGHT} h264 at {FPS} fps, 1 frame per second",
        "file_mb": path.stat().st_size / 1e6,
        **compare(path, workers=args.workers, pairs=args.pairs),
        "limits": LIMITS,
        "machine": machine(),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.output:
        write_atomic(args.output, text)


if __name__ == "__main__":
    main()
