"""Frames a second of drawn videos on one core: videos of the suite, and clips.

python benchmarks/drawing.py --output benchmarks/results/cpu/drawing.json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from videonsa.data.scripts import draw
from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts
from videonsa.rendered.clips import Clip
from videonsa.rendered.suite import SuiteSpec, make_script, suite_seed

SUITE_FRAMES = 512
"""Of 112 pixels: 4K tokens."""
CLIP_PATCHES = (1, 8, 24)
WARM_UPS = 10


def measure(work: Callable[[int], object], num_frames: int, *, repeats: int) -> dict[str, Any]:
    """CPU milliseconds of videos of so many frames, each another one, and frames a second."""
    for _ in range(WARM_UPS):
        work(0)
    milliseconds = []
    for index in range(1, repeats + 1):
        begin = time.process_time()
        work(index)
        milliseconds.append(1e3 * (time.process_time() - begin))
    return {
        "frames": num_frames,
        "cpu_ms_median": statistics.median(milliseconds),
        "cpu_ms_min": min(milliseconds),
        "cpu_ms_max": max(milliseconds),
        "frames_a_cpu_second": 1e3 * num_frames / statistics.median(milliseconds),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = SuiteSpec(num_frames=SUITE_FRAMES)
    runs = {
        "video of the suite": measure(
            lambda i: draw(make_script(suite_seed("train", i), spec=spec)),
            SUITE_FRAMES,
            repeats=options.repeats,
        )
    }
    for patches in CLIP_PATCHES:
        clips = [Clip(seed=i, patches=patches, phase=0.0) for i in range(options.repeats + 1)]
        name = f"clip of {patches} temporal patches"
        runs[name] = measure(
            lambda i, clips=clips: draw(clips[i]),  # type: ignore[misc]
            clips[0].num_frames,
            repeats=options.repeats,
        )
    result = {
        "what": "drawing videos of 112 x 112 on one core",
        "runs": runs,
        "cores": os.cpu_count(),
        "machine": measurement_facts(torch.device("cpu")),
    }
    write_atomic(options.output, json.dumps(result, indent=1) + "\n")
    for name, run in runs.items():
        print(f"{name}: {run['cpu_ms_median']:.1f} ms, {run['frames_a_cpu_second']:.0f} frames/s")


if __name__ == "__main__":
    main()
