"""A video file to the features of its frames: decode and resize, patchify, tower, overlapped."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videonsa.bench.stopwatch import timed_stage
from videonsa.errors import UsageError, VideoError
from videonsa.inference.encoded_clip import EncodedClip, encode_clip, part_size
from videonsa.machine import usable_cores
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.shape import VisionShape
from videonsa.video.decode import VideoClip, read_video
from videonsa.video.processing import patchify
from videonsa.video.sampling import SamplingSpec

EVERY_FRAME = 10**9
"""No limit but the rate decides how many frames are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingRequest:
    """Which video is read, and how."""

    video: Path
    fps: float = 1.0
    workers: int
    """To be compared with one."""
    max_pixels: int
    """Of a frame."""

    def __post_init__(self) -> None:
        """Refuse values outside the domain: UsageError."""
        if self.workers < 1:
            raise UsageError(f"workers={self.workers}: want at least 1")
        SamplingSpec(fps=self.fps, max_pixels=self.max_pixels)

    def sampling(self, vision: VisionShape) -> SamplingSpec:
        """The frames to take for a tower."""
        return SamplingSpec(
            fps=self.fps,
            max_frames=EVERY_FRAME,
            max_pixels=self.max_pixels,
            patch_size=vision.patch_size,
            merge_size=vision.merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )


def measure_reading(
    request: ReadingRequest,
    model: VideoNSAForConditionalGeneration,
    *,
    vision: VisionShape,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """Measure, stage by stage and all at once; gives the result so far after every stage.

    Args:
        request: what to read.
        model: whose tower encodes it.
        vision: the shape of that tower.
        repeats: timed runs of each stage.

    Yields:
        The result as JSON keeps it, the same object every time.

    Raises:
        VideoError: the video cannot be read, or its frames depend on the number of workers.

    """
    clip, reading = _read(request, request.sampling(vision), repeats=repeats)
    result = {
        "file": request.video.name,
        "duration": clip.info.duration,
        "source": f"{clip.info.width}x{clip.info.height} {clip.info.codec}",
        "fps": request.fps,
        "frames": len(clip.frames),
        "frame": tuple(clip.frames.shape[2:]),
        "grid": clip.plan.grid,
        "tokens": clip.plan.num_tokens,
        "cores": usable_cores(),
        **reading,
    }
    yield result
    pixels = torch.cat(_patches(clip.frames, vision, model.device))
    calls: dict[str, Callable[[], object]] = {
        "patchify": partial(_patches, clip.frames, vision, model.device),
        "vision tower": partial(model.encode_vision, pixels, [clip.plan.grid]),
        f"decode to features, overlapped, {_workers(request.workers)}": partial(
            encode_video, request, model, vision=vision
        ),
    }
    for name, call in calls.items():
        stage = timed_stage(name, call, device=model.device, repeats=repeats)
        result["stages"].append(stage)
        yield result


def encode_video(
    request: ReadingRequest, model: VideoNSAForConditionalGeneration, *, vision: VisionShape
) -> EncodedClip:
    """Read and encode it as `VideoQA.ask` does."""
    return encode_clip(
        request.video,
        request.sampling(vision),
        model.encode_kept,
        vision=vision,
        workers=request.workers,
        progress=False,
    )


def _read(
    request: ReadingRequest, spec: SamplingSpec, *, repeats: int
) -> tuple[VideoClip, dict[str, Any]]:
    """Runs of one and of many workers in turn, after one of many that is not timed."""
    clip = read_video(request.video, sampling=spec, workers=request.workers, progress=False)

    def read(workers: int) -> None:
        again = read_video(request.video, sampling=spec, workers=workers, progress=False)
        if not torch.equal(again.frames, clip.frames):
            raise VideoError(f"{request.video}: its frames depend on the number of workers")

    counts = sorted({1, request.workers})
    times = in_turn({count: partial(read, count) for count in counts}, repeats=repeats)
    stages = [
        {
            "name": f"decode + resize, {_workers(count)}",
            "ms": statistics.median(times[count]),
            "times_ms": times[count],
            "peak_gb": None,
            "error": None,
        }
        for count in counts
    ]
    ratios = [one / many for one, many in zip(times[1], times[request.workers], strict=True)]
    speedup = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return clip, {"workers": request.workers, "workers_speedup": speedup, "stages": stages}


def in_turn(calls: Mapping[int, Callable[[], object]], *, repeats: int) -> dict[int, list[float]]:
    """Milliseconds of each call, all of them once, then all of them again, and so on."""
    times: dict[int, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            begin = time.perf_counter()
            call()
            times[key].append(1e3 * (time.perf_counter() - begin))
    return times


def _patches(frames: Tensor, vision: VisionShape, device: torch.device) -> list[Tensor]:
    """Frames to patches, part by part, as on their way to the tower."""
    height, width = frames.shape[2:]
    return [
        patchify(
            part.to(device),
            patch_size=vision.patch_size,
            merge_size=vision.merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        ).pixels
        for part in frames.split(part_size(height, width, vision))
    ]


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
