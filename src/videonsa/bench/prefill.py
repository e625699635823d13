"""Time to the first token of a whole model, stage by stage: reading, tower, prefill, first token.

Weights are random and of a published shape. A video file is read, encoded and answered. Beside it
stand videos of given lengths, whose rows of the language model are given as embeddings in the two
regimes: `random` is iid normal, `coherent` one normal row a frame with 0.1 normal noise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videonsa.bench.clips import Clip, clip_embeddings, clip_of_grid, clip_of_tokens, dense_backend
from videonsa.bench.inputs import Regime
from videonsa.bench.machine import machine
from videonsa.bench.predicted import prediction
from videonsa.bench.random_model import IDS, MODELS, random_model, random_qwen
from videonsa.bench.reading import ReadingRequest, encode_video, measure_reading
from videonsa.bench.stopwatch import timed_stage
from videonsa.inference.shapes import VisionShape
from videonsa.models.cache import VideoNSACache
from videonsa.models.modeling import VideoNSAForConditionalGeneration

FORMAT = "videonsa prefill benchmark 1"
METHOD = (
    "wall time between device synchronisations, each run twice and the second and later ones "
    "timed; attention is from the end of v_proj to the beginning of o_proj of every layer, by CUDA "
    "events: rotary embedding, cache and gates are in it, the rest of that run is rest_ms; memory "
    "is the peak of PyTorch's allocator, weights included; predicted_gb is what videonsa plan says "
    "of the stage; one and many workers read in turn, after a reading that is not timed, and their "
    "frames are compared"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillRequest:
    """What to measure."""

    model: str
    tokens: tuple[int, ...]
    """Of the video."""
    frame: tuple[int, int] = (224, 224)
    """Height and width in pixels."""
    regimes: tuple[Regime, ...] = ("random", "coherent")
    repeats: int = 3
    dense: bool = True
    """Also dense attention, beside NSA."""
    peers: bool = False
    """Also transformers' own model."""
    reading: ReadingRequest | None = None
    """Also a video file, from its first packet to the first token."""
    device: torch.device


def bench_prefill(
    request: PrefillRequest, *, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure; gives the result so far after every length.

    Args:
        request: what to measure.
        progress: told a line now and then.
    """
    dtype = torch.bfloat16 if request.device.type == "cuda" else torch.float32
    progress(f"random weights of the {request.model} model")
    shape = MODELS[request.model]
    model = random_model(shape, device=request.device, dtype=dtype)
    peer = random_qwen(shape, device=request.device, dtype=dtype) if request.peers else None
    video = None
    if request.reading is not None:
        video = _video(model, request, request.reading, shape.vision)
        for stage in video["stages"]:
            progress(f"{video['file']}: {_line(stage)}")
    lengths: list[dict[str, Any]] = []
    for tokens in request.tokens:
        clip = clip_of_tokens(tokens, request.frame, request.device)
        held = sum(x.nbytes for some in (model, peer) if some for x in some.parameters())
        rows = clip.inputs["input_ids"].shape[1]
        stages = []
        for stage in _stages(model, peer, clip, request):
            stage |= prediction(stage, model, clip.grid, prompt_tokens=rows, held_bytes=held)
            progress(f"{tokens} tokens: {_line(stage)}")
            stages.append(stage)
        lengths.append({"tokens": tokens, "grid": clip.grid, "stages": stages})
        yield {
            "format": FORMAT,
            "model": request.model,
            "frame": request.frame,
            "dtype": str(dtype),
            "weights_gb": sum(x.nbytes for x in model.parameters()) / 1e9,
            "machine": machine(request.device),
            "method": METHOD,
            "video": video,
            "lengths": list(lengths),
        }


def _video(
    model: VideoNSAForConditionalGeneration,
    request: PrefillRequest,
    reading: ReadingRequest,
    vision: VisionShape,
) -> dict[str, Any]:
    """A file: reading, tower, prefill of its features; and all of it to the first token."""
    grid, result = measure_reading(reading, model, vision=vision, repeats=request.repeats)
    clip = clip_of_grid(grid, request.device)

    def embed() -> Tensor:
        features = encode_video(reading, model, vision=vision).features
        return model.embed_prompt(clip.inputs["input_ids"], video_features=features)

    def first_token() -> int:
        logits = model(**clip.inputs, inputs_embeds=embed(), logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    with torch.inference_mode():
        embeds = embed()
    result["stages"] += _prefill_stages(model, clip, "prefill, nsa", "nsa", embeds, request)
    result["stages"].append(_stage("video to first token, nsa", first_token, request))
    return result


def _stages(
    model: VideoNSAForConditionalGeneration, peer: Any, clip: Clip, request: PrefillRequest
) -> Iterator[dict[str, Any]]:
    """One after the other, as they are measured."""
    yield _tower_stage(model, clip, request)
    yield from _regime_stages(model, clip, request)
    if peer is not None:
        yield from _peer_stages(peer, clip, request)


def _tower_stage(
    model: VideoNSAForConditionalGeneration, clip: Clip, request: PrefillRequest
) -> dict[str, Any]:
    pixels = _pixels(clip, request.device)
    return _stage("vision tower", lambda: model.encode_vision(pixels, [clip.grid]), request)


def _pixels(clip: Clip, device: torch.device) -> Tensor:
    t, h, w = clip.grid
    return torch.randn(t * h * w, 1176, device=device)


def _regime_stages(
    model: VideoNSAForConditionalGeneration, clip: Clip, request: PrefillRequest
) -> Iterator[dict[str, Any]]:
    """Prefill and next token of NSA in each regime, and of dense attention if it is wanted."""
    width, like = model.config.text_config.hidden_size, model.lm_head.weight
    for regime in request.regimes:
        embeds = clip_embeddings(clip, width, regime, like=like)
        name = f"prefill, nsa, {regime}"
        yield from _prefill_stages(model, clip, name, "nsa", embeds, request)
    if request.dense:
        embeds = clip_embeddings(clip, width, "random", like=like)
        yield from _prefill_stages(model, clip, "prefill, dense", "dense", embeds, request)


def _prefill_stages(
    model: VideoNSAForConditionalGeneration,
    clip: Clip,
    name: str,
    attention: Literal["nsa", "dense"],
    embeds: Tensor,
    request: PrefillRequest,
) -> list[dict[str, Any]]:
    """Prefill from embeddings, and the token after it."""
    caches: list[VideoNSACache] = []

    def prefill() -> None:
        caches[:] = [VideoNSACache()]
        model(
            **clip.inputs,
            inputs_embeds=embeds,
            past_key_values=caches[0],
            attention=attention,
            logits_to_keep=1,
        )

    token = torch.full((1, 1), 20, device=request.device)

    def step() -> None:
        model(input_ids=token, past_key_values=caches[0].fork(), attention=attention)

    with dense_backend(attention, request.device), _AttentionTime(model) as attention_time:
        stage = _stage(name, prefill, request, before=attention_time.reset)
        inside = attention_time.read() if stage["error"] is None else None
    stage["attention_ms"] = inside
    stage["rest_ms"] = None if inside is None else stage["times_ms"][-1] - inside
    if stage["error"] is not None:
        return [stage]
    return [stage, _stage(f"next token after {name}", step, request)]


def _peer_stages(peer: Any, clip: Clip, request: PrefillRequest) -> list[dict[str, Any]]:
    """Transformers' tower and prefill, in its own way."""
    pixels = _pixels(clip, request.device)
    grid = clip.inputs["video_grid_thw"]
    ids = clip.inputs["input_ids"]
    types = (ids == IDS["video_token_id"]) * 2

    def tower() -> None:
        peer.model.visual(pixels.to(peer.dtype), grid_thw=grid)

    embeds = clip_embeddings(
        clip, peer.config.text_config.hidden_size, "random", like=peer.lm_head.weight
    )

    def prefill() -> None:
        peer(
            input_ids=None,
            inputs_embeds=embeds,
            position_ids=_positions(peer, ids, grid, types),
            use_cache=True,
            logits_to_keep=1,
        )

    with dense_backend("dense", request.device):
        return [
            _stage("transformers: vision tower", tower, request),
            _stage("transformers: prefill", prefill, request),
        ]


def _positions(peer: Any, ids: Tensor, grid: Tensor, types: Tensor) -> Tensor:
    positions: Tensor = peer.model.get_rope_index(
        input_ids=ids,
        mm_token_type_ids=types,
        video_grid_thw=grid,
        second_per_grid_ts=torch.ones(1, device=ids.device),
    )[0]
    return positions


class _AttentionTime:
    """Time between `v_proj` and `o_proj` of every layer, summed, by CUDA events; 0 on a CPU."""

    def __init__(self, model: VideoNSAForConditionalGeneration) -> None:
        self._layers = [layer.self_attn for layer in model.model.language_model.layers]
        self._on_gpu = model.device.type == "cuda"
        self._handles: list[Any] = []
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> "_AttentionTime":
        if self._on_gpu:
            for layer in self._layers:
                self._handles.append(layer.v_proj.register_forward_hook(self._mark))
                self._handles.append(layer.o_proj.register_forward_pre_hook(self._mark))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _mark(self, _: nn.Module, *__: object) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def reset(self) -> None:
        """Forget the run before."""
        self._events.clear()

    def read(self) -> float | None:
        """Milliseconds of the last run; None on a CPU."""
        if not self._on_gpu:
            return None
        pairs = zip(self._events[::2], self._events[1::2], strict=True)
        return float(sum(begin.elapsed_time(end) for begin, end in pairs))


def _stage(
    name: str, call: Callable[[], object], request: PrefillRequest, **options: Any
) -> dict[str, Any]:
    return timed_stage(name, call, device=request.device, repeats=request.repeats, **options)


def _line(stage: dict[str, Any]) -> str:
    if stage["error"] is not None:
        return f"{stage['name']}: {stage['error']}"
    memory = "" if stage["peak_gb"] is None else f", peak {stage['peak_gb']:.1f} GB"
    share = stage.get("attention_ms")
    inside = "" if share is None else f", attention {share:.0f} ms"
    return f"{stage['name']}: {stage['ms']:.1f} ms{inside}{memory}"
