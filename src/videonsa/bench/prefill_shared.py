"""Prefill of one long video shared by the processes of torchrun: tower, prefill, next token.

The weights, the rows and the names of the stages are those of `videonsa bench prefill`, so that the
result of one process is what the time of several is compared with.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from videonsa.bench.attention_inputs import Regime
from videonsa.bench.clip_rows import (
    Clip,
    clip_embeddings,
    clip_of_tokens,
    clip_pixels,
    dense_backend,
)
from videonsa.bench.comparable import check_one
from videonsa.bench.prefill import FORMAT as FORMAT_OF_ONE
from videonsa.bench.prefill import PrefillRequest
from videonsa.bench.prefill_calls import prefill_calls
from videonsa.bench.random_model import MODELS, random_model
from videonsa.bench.stopwatch import wall_times
from videonsa.machine import measurement_facts
from videonsa.models.distributed.sharded import share_encoding
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import AttentionMethod, Dense
from videonsa.parallel.context import ContextParallelGroup
from videonsa.train.run import join_processes

FORMAT = "videonsa shared prefill benchmark 1"
METHOD = (
    "wall time between device synchronisations, begun together, the slowest process of each run; "
    "each run twice and the second and later ones timed; every process has all weights and ends "
    "with the whole cache; it encodes its frames, has its rows of every chunk, and decodes the "
    "next token alone; dense attention by PyTorch's FlashAttention where the rows of a process are "
    "the last of more keys, else by the cuDNN backend; memory is the peak of PyTorch's allocator "
    "of each process, weights included; efficiency is the time of one process over n times that of "
    "n, of the next token too, which is not shared"
)


class _Measuring:
    """A request on its way to a result."""

    def __init__(self, request: PrefillRequest, one: Mapping[str, Any] | None) -> None:
        processes = join_processes(on_gpu=request.device.type == "cuda")
        self.request = request
        self.one = one
        self.is_first: bool = processes.is_main_process
        self.device: torch.device = processes.device
        self.cp_group = ContextParallelGroup()

    def stage(self, clip: Clip, name: str, call: Callable[[], object]) -> dict[str, Any]:
        """A call timed in all processes; one that fails ends the run, since the others wait."""
        with torch.inference_mode():
            own = wall_times(
                call, device=self.device, repeats=self.request.repeats, before=dist.barrier
            )
        everyone: list[Any] = [None] * self.cp_group.world_size
        dist.all_gather_object(everyone, own)
        times = [max(run) for run in zip(*(times for times, _ in everyone), strict=True)]
        ms = statistics.median(times)
        alone = None if self.one is None else _ms_of_one(self.one, clip, name)
        return {
            "name": name,
            "ms": ms,
            "times_ms": times,
            "peak_gb": [peak for _, peak in everyone if peak is not None],
            "efficiency": None if alone is None else alone / (self.cp_group.world_size * ms),
        }


def bench_shared_prefill(
    request: PrefillRequest,
    *,
    one: Mapping[str, Any] | None = None,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measure, as one of the processes of torchrun; the first gives the result after every stage.

    Args:
        request: what to measure: lengths of one frame size, no baseline, no file.
        one: the result of one process, which this is compared with.
        progress: told a line a stage, in the first process.

    Raises:
        UsageError: a result to compare with that is of something else.
    """
    measuring = _Measuring(request, one)
    if one is not None:
        check_one(one, device=measuring.device, format=FORMAT_OF_ONE, model=request.model)
    dtype = torch.bfloat16 if measuring.device.type == "cuda" else torch.float32
    model = random_model(MODELS[request.model], device=measuring.device, dtype=dtype)
    result: dict[str, Any] = {
        "format": FORMAT,
        "model": request.model,
        "dtype": str(dtype),
        "processes": measuring.cp_group.world_size,
        "machine": measurement_facts(measuring.device),
        "method": METHOD,
        "lengths": [],
    }
    for tokens in request.tokens:
        clip = clip_of_tokens(tokens, request.frames[0], measuring.device)
        stages: list[dict[str, Any]] = []
        result["lengths"].append(
            {"tokens": clip.tokens, "frame": clip.frame, "grid": clip.grid, "stages": stages}
        )
        for stage in _stages(measuring, model, clip):
            stages.append(stage)
            if measuring.is_first:
                progress(f"{clip.tokens} tokens, {clip.size}: {stage_line(stage)}")
                yield result


def _stages(
    measuring: _Measuring, model: VideoNSAForConditionalGeneration, clip: Clip
) -> Iterator[dict[str, Any]]:
    yield _tower(measuring, model, clip)
    for regime in measuring.request.regimes:
        yield from _prefill(measuring, model, clip, f"prefill, nsa, {regime}", model.method, regime)
    if measuring.request.dense:
        yield from _prefill(measuring, model, clip, "prefill, dense", Dense(), "random")


def _tower(
    measuring: _Measuring, model: VideoNSAForConditionalGeneration, clip: Clip
) -> dict[str, Any]:
    pixels = clip_pixels(clip, measuring.device)
    merge_size = model.config.vision_config.spatial_merge_size

    def encode() -> None:
        share_encoding(
            model.encode_vision, pixels, [clip.grid], measuring.cp_group, merge_size=merge_size
        )

    return measuring.stage(clip, "vision tower", encode)


def _prefill(
    measuring: _Measuring,
    model: VideoNSAForConditionalGeneration,
    clip: Clip,
    name: str,
    method: AttentionMethod,
    regime: Regime,
) -> Iterator[dict[str, Any]]:
    """Prefill from embeddings, and the token after it."""
    width = model.config.text_config.hidden_size
    embeds = clip_embeddings(clip, width, regime, like=model.lm_head.weight)
    cp_group = measuring.cp_group
    calls = prefill_calls(model, clip, method, embeds, cp_group=cp_group)
    with dense_backend(method, measuring.device):
        stage = measuring.stage(clip, name, calls.prefill)
    yield stage
    yield measuring.stage(clip, f"next token after {name}", calls.step)


def stage_line(stage: Mapping[str, Any]) -> str:
    """A measurement in words."""
    parts = [f"{stage['ms']:.1f} ms"]
    if stage["peak_gb"]:
        parts.append("peak " + " and ".join(f"{peak:.1f}" for peak in stage["peak_gb"]) + " GB")
    if stage["efficiency"] is not None:
        parts.append(f"efficiency {100 * stage['efficiency']:.0f} %")
    return f"{stage['name']}: {', '.join(parts)}"


def _ms_of_one(one: Mapping[str, Any], clip: Clip, name: str) -> float | None:
    """The time of the same stage; None where it has none."""
    for length in one["lengths"]:
        if (length["tokens"], tuple(length["frame"])) == (clip.tokens, clip.frame):
            for stage in length["stages"]:
                if stage["name"] == name:
                    return None if stage["ms"] is None else float(stage["ms"])
    return None
