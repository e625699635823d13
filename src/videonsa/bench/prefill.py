"""Time to the first token of a whole model, stage by stage: reading, tower, prefill, first token.

Weights are random and of a published shape. Videos of given lengths are encoded; their rows of the
language model are given as embeddings in the two regimes: `random` is iid normal, `coherent` one
normal row a frame with 0.1 normal noise. A video file is read, encoded and answered.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videonsa.bench.attention_inputs import Regime
from videonsa.bench.clip_rows import (
    Clip,
    clip_embeddings,
    clip_of_grid,
    clip_of_tokens,
    clip_pixels,
    dense_backend,
)
from videonsa.bench.measure import one_line
from videonsa.bench.predicted_memory import prediction
from videonsa.bench.prefill_calls import CompressedClip, PrefillCalls, prefill_calls
from videonsa.bench.probes import AttentionTime
from videonsa.bench.random_model import IDS, MODELS, random_model, random_qwen
from videonsa.bench.stopwatch import failed_stage, timed_stage
from videonsa.bench.video_reading import ReadingRequest, encode_video, measure_reading
from videonsa.errors import UsageError
from videonsa.machine import measurement_facts
from videonsa.models.checkpoints.quantised import Weights, quantise
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import AttentionMethod, Dense
from videonsa.models.methods.compression import TokenCompression
from videonsa.models.recorder.unions import TILE_ROWS, SelectionUnions
from videonsa.models.shape import VisionShape

FORMAT = "videonsa prefill benchmark 2"
MOST_UNION_TOKENS = 2**18
"""Selections of longer videos are not looked at: it would take another run of minutes."""
METHOD = (
    "wall time between device synchronisations, each run twice and the second and later ones "
    "timed; attention is from the end of v_proj to the beginning of o_proj of every layer, by CUDA "
    "events of the last run, rotary embedding and cache in it, less the gates, which are from the "
    "beginning of their first projection to the end of their sigmoid; mean_unions is how many "
    "blocks 16 neighbouring rows select, layer by layer, of a run that is not timed; memory is the "
    "peak of PyTorch's allocator, weights included; "
    "predicted_gb is what videonsa plan says of the stage; attention_share is the share of the "
    "query-key pairs of dense attention that all layers and heads computed; a method that keeps "
    "some tokens is shown frames of noise, and its tower stage has what it asks of the tower; one "
    "and many workers read in turn, after a reading that is not timed, and their frames are "
    "compared"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillRequest:
    """What to measure."""

    model: str
    tokens: tuple[int, ...]
    """Of the video."""
    frames: tuple[tuple[int, int], ...] = ((224, 224),)
    """Height and width in pixels. All is measured of the first, of others the tower alone."""
    weights: Weights = "full"
    regimes: tuple[Regime, ...] = ("random", "coherent")
    repeats: int = 3
    dense: bool = True
    """Also dense attention, beside NSA."""
    methods: tuple[str, ...] = ()
    """Also these, as `parse_method` reads them."""
    baseline: bool = False
    """Also transformers' own model."""
    rows_per_chunk: int | None = None
    """Of NSA; None is the model's own choice."""
    reading: ReadingRequest | None = None
    """Also a video file, from its first packet to the first token."""
    device: torch.device


def bench_prefill(
    request: PrefillRequest, *, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure; gives the result so far after every stage.

    Args:
        request: what to measure.
        progress: told a line now and then.
    """
    dtype = torch.bfloat16 if request.device.type == "cuda" else torch.float32
    progress(f"random weights of the {request.model} model")
    shape = MODELS[request.model]
    model = random_model(shape, device=request.device, dtype=dtype)
    quantise(model, request.weights, request.device)
    result: dict[str, Any] = {
        "format": FORMAT,
        "model": request.model,
        "dtype": str(dtype),
        "weights": request.weights,
        "weights_gb": sum(x.nbytes for x in model.parameters()) / 1e9,
        "rows_per_chunk": request.rows_per_chunk,
        "machine": measurement_facts(request.device),
        "method": METHOD,
        "video": None,
        "lengths": [],
    }
    for stages in (_own_stages(model, request), _baseline_stages(request, dtype)):
        for clip, stage in stages:
            progress(f"{clip.tokens} tokens, {clip.size}: {_line(stage)}")
            _entry_of(clip, result["lengths"])["stages"].append(stage)
            yield result
    if request.reading is not None:
        told = 0
        for video in _video(model, request, request.reading, shape.vision):
            for stage in video["stages"][told:]:
                progress(f"{video['file']}: {_line(stage)}")
            told = len(video["stages"])
            result["video"] = video
            yield result


def _entry_of(clip: Clip, lengths: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the stages of a clip are kept."""
    new = {"tokens": clip.tokens, "frame": clip.frame, "grid": clip.grid, "stages": []}
    for entry in lengths:
        if (entry["tokens"], entry["frame"]) == (clip.tokens, clip.frame):
            return entry
    lengths.append(new)
    return new


def _video(
    model: VideoNSAForConditionalGeneration,
    request: PrefillRequest,
    reading: ReadingRequest,
    vision: VisionShape,
) -> Iterator[dict[str, Any]]:
    """A file: reading, tower, prefill of its features; and all of it to the first token.

    Gives the result so far after every stage.
    """
    for result in measure_reading(reading, model, vision=vision, repeats=request.repeats):
        yield result
    clip = clip_of_grid(result["grid"], request.device)

    def embed() -> Tensor:
        features = encode_video(reading, model, vision=vision).features
        return model.embed_prompt(clip.inputs["input_ids"], video_features=features)

    def first_token() -> int:
        logits = model(**clip.inputs, inputs_embeds=embed(), logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    with torch.inference_mode():
        embeds = embed()
    for stage in _prefill_stages(model, clip, "prefill, nsa", model.method, embeds, request):
        result["stages"].append(stage)
        yield result
    result["stages"].append(_stage("video to first token, nsa", first_token, request))
    yield result


def _own_stages(
    model: VideoNSAForConditionalGeneration, request: PrefillRequest
) -> Iterator[tuple[Clip, dict[str, Any]]]:
    """Of this model, one after the other, as they are measured."""
    held = sum(x.nbytes for x in model.parameters())

    def predicted(clip: Clip, stage: dict[str, Any]) -> dict[str, Any]:
        return stage | prediction(
            stage,
            model,
            clip.grid,
            prompt_tokens=clip.num_rows,
            rows_per_chunk=request.rows_per_chunk,
            weights=request.weights,
            held_bytes=held,
        )

    for tokens in request.tokens:
        clip = clip_of_tokens(tokens, request.frames[0], request.device)
        yield clip, predicted(clip, _tower_stage(model, clip, request))
        for stage in _regime_stages(model, clip, request):
            yield clip, predicted(clip, stage)
    for frame in request.frames[1:]:
        clip = clip_of_tokens(max(request.tokens), frame, request.device)
        yield clip, predicted(clip, _tower_stage(model, clip, request))


def _tower_stage(
    model: VideoNSAForConditionalGeneration, clip: Clip, request: PrefillRequest
) -> dict[str, Any]:
    pixels = clip_pixels(clip, request.device)
    return _stage("vision tower", lambda: model.encode_vision(pixels, [clip.grid]), request)


def _regime_stages(
    model: VideoNSAForConditionalGeneration, clip: Clip, request: PrefillRequest
) -> Iterator[dict[str, Any]]:
    """Prefill and next token of NSA in each regime, and of dense attention if it is wanted."""
    width, like = model.config.text_config.hidden_size, model.lm_head.weight
    for regime in request.regimes:
        embeds = clip_embeddings(clip, width, regime, like=like)
        name = f"prefill, nsa, {regime}"
        yield from _prefill_stages(model, clip, name, model.method, embeds, request)
    if request.dense:
        embeds = clip_embeddings(clip, width, "random", like=like)
        yield from _prefill_stages(model, clip, "prefill, dense", Dense(), embeds, request)
    for text in request.methods:
        yield from _method_stages(model, clip, text, request)


def _method_stages(
    model: VideoNSAForConditionalGeneration, clip: Clip, text: str, request: PrefillRequest
) -> Iterator[dict[str, Any]]:
    """Of another method; its line where it refuses the model."""
    try:
        method = model.config.method_of(text)
    except UsageError as error:
        yield failed_stage(f"prefill, {text}", error)
        return
    if isinstance(method, TokenCompression):
        yield from _compressed_stages(model, clip, text, method, request)
        return
    width, like = model.config.text_config.hidden_size, model.lm_head.weight
    for regime in request.regimes:
        embeds = clip_embeddings(clip, width, regime, like=like)
        name = f"prefill, {text}, {regime}"
        yield from _prefill_stages(model, clip, name, method, embeds, request, text)


def _compressed_stages(
    model: VideoNSAForConditionalGeneration,
    clip: Clip,
    text: str,
    method: TokenCompression,
    request: PrefillRequest,
) -> Iterator[dict[str, Any]]:
    """The vision tower, of which tokens are kept, then prefill of these and next token."""
    encoded = CompressedClip(model, clip, method)
    stage = _stage(f"vision tower, {text}", encoded.encode, request)
    yield stage
    if stage["error"] is None:
        inside = AttentionTime(request.device)
        calls = encoded.calls(inside)
        yield from _call_stages(f"prefill, {text}", text, method, calls, inside, request)


def _prefill_stages(
    model: VideoNSAForConditionalGeneration,
    clip: Clip,
    name: str,
    method: AttentionMethod,
    embeds: Tensor,
    request: PrefillRequest,
    text: str = "",
) -> Iterator[dict[str, Any]]:
    """Prefill from embeddings, and the token after it; `text` is the method's, with options."""
    inside = AttentionTime(request.device)
    options = {
        "rows_per_chunk": request.rows_per_chunk if method.is_chunked else None,
        "recorder": inside,
    }
    calls = prefill_calls(model, clip, method, embeds, **options)
    for stage in _call_stages(name, text or method.name, method, calls, inside, request):
        if method is model.method and "attention_share" in stage:
            stage |= _unions(model, clip, embeds)
        yield stage


def _call_stages(
    name: str,
    text: str,
    method: AttentionMethod,
    calls: PrefillCalls,
    inside: AttentionTime,
    request: PrefillRequest,
) -> Iterator[dict[str, Any]]:
    """A prefill with the time of its attention and what was computed of it, and the next token."""
    with dense_backend(method, request.device):
        stage = _stage(name, calls.prefill, request, before=inside.reset)
    if stage["error"] is not None:
        yield stage
        return
    yield stage | inside.read() | {"method": text, "attention_share": calls.share()}
    yield _stage(f"next token after {name}", calls.step, request) | {"method": text}


def _unions(model: VideoNSAForConditionalGeneration, clip: Clip, embeds: Tensor) -> dict[str, Any]:
    """What the rows select, layer by layer: not timed, all rows in one step. Or why not."""
    if not TILE_ROWS <= clip.tokens <= MOST_UNION_TOKENS:
        why = f"not looked at outside of {TILE_ROWS} to {MOST_UNION_TOKENS} tokens"
        return {"mean_unions": None, "no_unions": why}
    recorder = SelectionUnions()
    try:
        with torch.inference_mode():
            model(
                **clip.inputs,
                inputs_embeds=embeds,
                use_cache=False,
                recorder=recorder,
                rows_per_chunk=0,
                logits_to_keep=1,
            )
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"mean_unions": None, "no_unions": one_line(error)}
    return {"mean_unions": recorder.unions, "no_unions": None}


def _baseline_stages(
    request: PrefillRequest, dtype: torch.dtype
) -> Iterator[tuple[Clip, dict[str, Any]]]:
    """Transformers' tower and prefill, in its own way."""
    if not request.baseline:
        return
    baseline = random_qwen(MODELS[request.model], device=request.device, dtype=dtype)
    for tokens in request.tokens:
        clip = clip_of_tokens(tokens, request.frames[0], request.device)
        with dense_backend(Dense(), request.device):
            for name, call in _baseline_calls(baseline, clip, request).items():
                yield clip, _stage(f"transformers: {name}", call, request)


def _baseline_calls(
    baseline: Any, clip: Clip, request: PrefillRequest
) -> dict[str, Callable[[], object]]:
    pixels = clip_pixels(clip, request.device)
    grid = clip.inputs["video_grid_thw"]
    ids = clip.inputs["input_ids"]
    positions = _positions(baseline, ids, grid, (ids == IDS["video_token_id"]) * 2)
    width = baseline.config.text_config.hidden_size
    embeds = clip_embeddings(clip, width, "random", like=baseline.lm_head.weight)

    def tower() -> None:
        baseline.model.visual(pixels.to(baseline.dtype), grid_thw=grid)

    def prefill() -> None:
        baseline(
            input_ids=None,
            inputs_embeds=embeds,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )

    return {"vision tower": tower, "prefill": prefill}


def _positions(baseline: Any, ids: Tensor, grid: Tensor, types: Tensor) -> Tensor:
    positions: Tensor = baseline.model.get_rope_index(
        input_ids=ids,
        mm_token_type_ids=types,
        video_grid_thw=grid,
        second_per_grid_ts=torch.ones(1, device=ids.device),
    )[0]
    return positions


def _stage(
    name: str, call: Callable[[], object], request: PrefillRequest, **options: Any
) -> dict[str, Any]:
    return timed_stage(name, call, device=request.device, repeats=request.repeats, **options)


def _line(stage: dict[str, Any]) -> str:
    if stage["error"] is not None:
        return f"{stage['name']}: {stage['error']}"
    memory = "" if stage["peak_gb"] is None else f", peak {stage['peak_gb']:.1f} GB"
    share = stage.get("attention_ms")
    inside = (
        "" if share is None else f", attention {share:.0f} ms, gates {stage['gates_ms']:.0f} ms"
    )
    return f"{stage['name']}: {stage['ms']:.1f} ms{inside}{memory}"
