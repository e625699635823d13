"""Time and memory of `read_video` against a bare PyAV decode-and-downscale loop.

    python benchmarks/decode.py --output benchmarks/results/cpu/decode.json

Both take the same frames (1 per second) at the same size from a 10-minute 720p h264 file, which is
rendered once and kept in the temporary folder. Runs alternate (ours, bare, ours, ...), each in a
process of its own. Seconds leave imports out; resident memory is the peak of the whole process.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS = 1280, 720, 30
LIMITS = {"time_ratio": 1.15, "resident_mb": 500}


def render(path: Path, *, minutes: int) -> None:
    """A moving gradient under a bright square and grain, cut every 20 seconds; a minute repeated.

    The minute is encoded once and its packets written `minutes` times: decoding does not know.
    """
    minute, partial = path.with_suffix(".minute.mp4"), path.with_suffix(".partial.mp4")
    encode_minute(minute)
    with av.open(str(partial), "w") as target:
        copy = None
        for repeat in range(minutes):
            with av.open(str(minute)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        shift = int(repeat * 60 / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = copy
                        target.mux(packet)
    minute.unlink()
    partial.rename(path)


def encode_minute(path: Path) -> None:
    """One minute of it."""
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 14, (8, HEIGHT, WIDTH), dtype=np.uint8)
    ramp = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for index in range(60 * FPS):
            scene, step = divmod(index, 20 * FPS)
            luma = ((ramp + 3 * step + 61 * scene) // 8 % 200).astype(np.uint8)
            x, y = (7 * step + 90 * scene) % (WIDTH - 160), (3 * step) % (HEIGHT - 160)
            luma[y : y + 160, x : x + 160] = 220
            luma += grain[index % 8]
            chroma = np.full((HEIGHT // 2, WIDTH), 100 + 8 * (scene % 8), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.vstack([luma, chroma]), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class Clock:
    """Wall time, and the CPU time of all threads (which other load on the machine leaves alone)."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since the clock was made."""
        wall, cpu = self._begin
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def run_ours(path: Path) -> dict[str, float]:
    """`read_video` at 1 frame per second."""
    from videonsa.video.decode import read_video
    from videonsa.video.sampling import SamplingSpec

    clock = Clock()
    clip = read_video(path, sampling=SamplingSpec(fps=1.0))
    return clock.read() | {"frames": len(clip.frames)}


def run_bare(path: Path) -> dict[str, float]:
    """The loop one would write by hand: decode all, downscale the wanted frames with swscale."""
    from videonsa.video.decode import probe
    from videonsa.video.sampling import SamplingSpec, plan_sampling

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


RUNNERS = {"ours": run_ours, "bare": run_bare}


def measure(runner: str, path: Path) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--runner", runner, "--video", str(path)]
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
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    measured = ["src/videonsa/video", "benchmarks/decode.py"]
    commit = ["git", "log", "-1", "--format=%h", "--", *measured]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
        "commit": subprocess.check_output(commit, text=True, cwd=Path(__file__).parents[1]).strip(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    """Run all, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runner:
        run = RUNNERS[args.runner](args.video)
        # Linux counts in KiB.
        run["resident_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(run))
        return
    path = Path(tempfile.gettempdir()) / f"videonsa-benchmark-720p-{args.minutes}min.mp4"
    if not path.exists():
        render(path, minutes=args.minutes)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
    for _ in range(args.pairs):
        for name in RUNNERS:
            runs[name].append(measure(name, path))
    pairs = zip(runs["ours"], runs["bare"], strict=True)
    ratios = [ours["seconds"] / bare["seconds"] for ours, bare in pairs]
    result = {
        "what": f"{args.minutes} min of {WIDTH}x{HEIGHT} h264 at {FPS} fps, 1 frame per second",
        "file_mb": path.stat().st_size / 1e6,
        **{name: summarise(all_runs) for name, all_runs in runs.items()},
        "time_ratio": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "limits": LIMITS,
        "machine": machine(),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
