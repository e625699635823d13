"""Frames a second of rendered videos: drawn on one core, and from drawings on a GPU.

python benchmarks/drawing.py --output benchmarks/results/cpu/drawing.json
python benchmarks/drawing.py --device cuda --output benchmarks/results/h200/drawing.json
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
from videonsa.ops.drawing import (
    Drawing,
    by_kernel,
    canvas_on,
    draw_frames,
    draw_patches,
    join_drawings,
)
from videonsa.rendered.clips import Clip
from videonsa.rendered.suite import Script, drawing_of, suite_seed
from videonsa.rendered.suites import SPECS, script_from
from videonsa.video.processing import normalised_levels, patchify

SUITE_FRAMES = 512
"""Of 112 pixels: 4K tokens."""
CLIP_PATCHES = (1, 8, 24)
VIDEOS = 30
"""Drawn together on a GPU: 123K tokens."""
WARM_UPS = 10
PATCH_SIZES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}


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


def script(suite: int, index: int) -> Script:
    """Video number `index` of a suite's training split."""
    return script_from(suite_seed("train", index), spec=SPECS[suite](num_frames=SUITE_FRAMES))


def whole(drawn: Script) -> Drawing:
    """A drawing of all its frames."""
    return drawing_of(drawn, 0, drawn.num_frames)


def on_one_core(repeats: int) -> dict[str, Any]:
    """Frames, and drawings without frames, of each suite; frames of clips."""
    runs = {}
    for suite, name in ((1, "suite"), (2, "second suite")):
        runs[f"video of the {name}"] = measure(
            lambda i, suite=suite: draw(script(suite, i)),  # type: ignore[misc]
            SUITE_FRAMES,
            repeats=repeats,
        )
        runs[f"drawing of the {name}"] = measure(
            lambda i, suite=suite: whole(script(suite, i)),  # type: ignore[misc]
            SUITE_FRAMES,
            repeats=repeats,
        )
    for patches in CLIP_PATCHES:
        clips = [Clip(seed=i, patches=patches, phase=0.0) for i in range(repeats + 1)]
        runs[f"clip of {patches} temporal patches"] = measure(
            lambda i, clips=clips: draw(clips[i]),  # type: ignore[misc]
            clips[0].num_frames,
            repeats=repeats,
        )
    return runs


def milliseconds_of(work: Callable[[], object], *, repeats: int) -> float:
    """Median from the call until the GPU is done."""
    for _ in range(WARM_UPS):
        work()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(found)


def on_gpu(suite: int, device: torch.device, *, repeats: int) -> dict[str, Any]:
    """A batch of videos from their drawings: frames, and patches with and without frames."""
    from videonsa.ops.triton.drawing import Patches, draw_into

    drawings = [whole(script(suite, index)) for index in range(VIDEOS)]
    drawing = join_drawings(drawings)
    levels = normalised_levels(device).bfloat16()
    frames = by_kernel(drawing, device)
    patches = draw_patches(drawing, levels, **PATCH_SIZES)
    canvas = canvas_on(drawing, device)
    cut = Patches(levels, *PATCH_SIZES.values())
    kernel_ms = milliseconds_of(lambda: draw_into(frames, *canvas), repeats=repeats)
    patches_ms = milliseconds_of(lambda: draw_into(patches, *canvas, cut), repeats=repeats)
    wanted = draw_frames(drawings[0])
    return {
        "videos": VIDEOS,
        "frames": len(drawing),
        "joined_and_moved_ms": milliseconds_of(
            lambda: canvas_on(join_drawings(drawings), device), repeats=repeats
        ),
        "frames_ms": kernel_ms,
        "frames_a_second": 1e3 * len(drawing) / kernel_ms,
        "gb_a_second": frames.nbytes / kernel_ms / 1e6,
        "patches_ms": patches_ms,
        "patches_gb_a_second": patches.nbytes / patches_ms / 1e6,
        "patches_from_frames_ms": milliseconds_of(
            lambda: patchify(frames, **PATCH_SIZES).pixels.bfloat16(), repeats=repeats
        ),
        "bytes_of_the_cpu": torch.equal(frames[: len(wanted)].cpu(), wanted),
        "patches_of_the_frames": torch.equal(
            patchify(frames, **PATCH_SIZES).pixels.bfloat16(), patches
        ),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    result = {
        "what": "drawing videos of 112 x 112 on one core",
        "runs": on_one_core(options.repeats),
        "cores": os.cpu_count(),
        "machine": measurement_facts(device),
    }
    if device.type == "cuda":
        result["on_the_gpu"] = {
            f"suite {suite}": on_gpu(suite, device, repeats=options.repeats) for suite in SPECS
        }
    write_atomic(options.output, json.dumps(result, indent=1) + "\n")
    for name, run in result["runs"].items():
        print(f"{name}: {run['cpu_ms_median']:.1f} ms, {run['frames_a_cpu_second']:.0f} frames/s")
    for name, run in result.get("on_the_gpu", {}).items():
        print(f"{name} on the GPU: {json.dumps(run)}")


if __name__ == "__main__":
    main()
