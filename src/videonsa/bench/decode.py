"""Time of a decoded token after a long cache: captured steps, the plain forward, transformers.

Weights, keys and values are random and of a published shape. Nothing is prefilled.
"""

import gc
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch

from videonsa.bench.decode_baselines import BASELINES, Baseline, baseline_run
from videonsa.bench.decode_profile import kernels_of_steps
from videonsa.bench.filled_cache import copy_tb_per_s, decoding_bytes, filled_cache, row_bytes
from videonsa.bench.measure import one_line
from videonsa.bench.random_model import MODELS, random_model, random_qwen
from videonsa.bench.stopwatch import wait_for
from videonsa.inference.decoding import decode, decode_each
from videonsa.inference.sampling import GenerationSettings, Sampler
from videonsa.machine import measurement_facts
from videonsa.models.cache import VideoNSACache
from videonsa.models.checkpoints.quantised import Weights, quantise
from videonsa.models.decoding.steps import KeptSteps, StaticSteps, rows_needed
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

FORMAT = "videonsa decode benchmark 1"
OURS, PLAIN = "videonsa", "videonsa, plain forward"
QUESTION_TOKENS = 30
PLAIN_TOKENS = 12
FIRST_TOKENS = 4
"""Decoded before times count: steps are compiled, then captured, then replayed."""
HOST_STEPS = 32
"""Enqueued at once: fewer launches than a stream takes before the host has to wait."""
METHOD = (
    "keys, values and weights are random, nothing is prefilled; ms is the median of all tokens of "
    "all answers but their first, each timed on the host from the token before it being there; "
    "first_ms is from asking a question of 30 tokens to its first token being there, with steps "
    "captured before, and does not wait for the step that runs ahead; host_ms is the host's time "
    "to enqueue a step and its sampling (sampling_ms) when nothing waits; kernels are those of a "
    "replayed step under the profiler, after all times (launches take longer behind it), busy_ms "
    "the time in which at least one runs; bound_ms is "
    "weights (layers, head) and keys and values of a step, read once at copy_tb_per_s, which is "
    "measured on this device as a copy's bytes read and written; several questions share one "
    "cache (videonsa) or have caches of their own (transformers); transformers' tokens are timed "
    "in a loop that calls its model, takes the likeliest token and waits for it, torch.compile in "
    "the mode that its generate uses; peak_gb is the peak of PyTorch's allocator while decoding, "
    "weights included"
)

Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRequest:
    """What to measure."""

    model: str
    tokens: tuple[int, ...]
    """In the cache."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Questions at a time."""
    new_tokens: int = 64
    """Of an answer."""
    repeats: int = 3
    """Answers that are timed."""
    weights: Weights = "full"
    baseline_tokens: tuple[int, ...] = ()
    """In the caches of transformers; none: it is not measured."""
    baseline_seconds: float = 90.0
    """For all runs of each of transformers' ways, compiling included; what is left is not run."""
    device: torch.device


def bench_decode(
    request: DecodeRequest,
    *,
    before: Mapping[str, Any] | None = None,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measure; gives the result so far after every run.

    Args:
        request: what to measure.
        before: an earlier result of the same machine, code and request: its runs are
            kept, and those that failed repeated.
        progress: told a line for each run.
    """
    dtype = torch.bfloat16 if request.device.type == "cuda" else torch.float32
    result: dict[str, Any] = {
        "format": FORMAT,
        "model": request.model,
        "dtype": str(dtype),
        "weights": request.weights,
        "question_tokens": QUESTION_TOKENS,
        "new_tokens": request.new_tokens,
        "repeats": request.repeats,
        "machine": measurement_facts(request.device),
        "method": METHOD,
        "copy_tb_per_s": copy_tb_per_s(request.device),
        "runs": [run for run in before["runs"] if run["error"] is None] if before else [],
    }
    known = {_key(run) for run in result["runs"]}
    for runs in (_own_runs, _baseline_runs):
        for run in runs(request, dtype, known, progress):
            run["bound_ms"] = run.pop("step_bytes") / 1e9 / result["copy_tb_per_s"]
            progress(describe(run))
            result["runs"].append(run)
            yield result
    yield result


def describe(run: Run) -> str:
    """A run in one line."""
    what = f"{run['what']}, {run['tokens']:,} tokens, batch {run['batch']}"
    if run["error"] is not None:
        return f"{what}: {run['error']}"
    first = "" if run["first_ms"] is None else f", first token {run['first_ms']:.1f} ms"
    host = "" if run["host_ms"] is None else f", host {1e3 * run['host_ms']:.0f} us"
    return (
        f"{what}: {run['ms']:.2f} ms a step (bound {run['bound_ms']:.2f})"
        f"{first}{host}, {run['tokens_per_s']:.0f} tokens/s"
    )


def _key(run: Run) -> tuple[str, int, int]:
    return run["what"], run["tokens"], run["batch"]


def _new_run(what: str, tokens: int, batch: int) -> Run:
    """A run without numbers."""
    numbers = dict.fromkeys(
        (
            *("error", "how", "ms", "first_ms", "first_run_ms"),
            *("begin_ms", "host_ms", "host_ms_min", "sampling_ms"),
            *("tokens_per_s", "kernels", "busy_ms", "span_ms", "peak_gb"),
        )
    )
    names = {"what": what, "tokens": tokens, "batch": batch}
    return names | numbers | {"times_ms": [], "first_times_ms": [], "step_bytes": 0}


def _own_runs(
    request: DecodeRequest,
    dtype: torch.dtype,
    known: set[tuple[str, int, int]],
    progress: Callable[[str], None],
) -> Iterator[Run]:
    """Of this model, lengths in order."""
    wanted = [
        (tokens, [(PLAIN, 1), *((OURS, batch) for batch in request.batches)])
        for tokens in request.tokens
    ]
    wanted = [
        (tokens, [one for one in ways if (one[0], tokens, one[1]) not in known])
        for tokens, ways in wanted
    ]
    if not any(ways for _, ways in wanted):
        return
    progress(f"random weights of the {request.model} model")
    model = random_model(MODELS[request.model], device=request.device, dtype=dtype)
    quantise(model, request.weights, request.device)
    weights = decoding_bytes(model._language_model, model.lm_head)
    row = row_bytes(model.config.get_text_config(), dtype)
    room = rows_needed(QUESTION_TOKENS, request.new_tokens) + HOST_STEPS
    measured: list[Run] = []
    for tokens, ways in wanted:
        held = _Held(model, tokens, room)
        for what, batch in ways:
            run = _new_run(what, tokens, batch) | {"step_bytes": weights + tokens * row}
            measure = _plain if what == PLAIN else partial(_measured, request=request, batch=batch)
            _fill_in(run, partial(measure, held), request.device)
            measured.append(run)
            yield run
        held.cache = None
    # Last: once the profiler was there, every launch of the process takes longer.
    for tokens in request.tokens:
        held = _Held(model, tokens, room)
        for run in measured:
            if run["tokens"] == tokens and run["host_ms"] is not None:
                progress(f"kernels of a step: {tokens:,} tokens, batch {run['batch']}")
                run |= _kernels(held, request=request, batch=run["batch"])


@dataclass(slots=True)
class _Held:
    """A model, and a cache that is filled when it is first asked for."""

    model: VideoNSAForConditionalGeneration
    tokens: int
    room: int
    cache: VideoNSACache | None = None

    def filled(self) -> VideoNSACache:
        """The cache; torch.OutOfMemoryError where it does not fit."""
        if self.cache is None:
            self.cache = filled_cache(self.model, self.tokens, room=self.room)
        return self.cache


def _fill_in(run: Run, measure: Callable[[], Run], device: torch.device) -> None:
    """Measure, and keep the numbers or the line of what was raised."""
    on_gpu = device.type == "cuda"
    gc.collect()  # what earlier runs left: graphs, another model
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        run |= measure()
    except Exception as error:  # whatever a run raises, others follow
        run["error"] = one_line(error)
        if on_gpu:
            torch.cuda.empty_cache()
        return
    run["ms"] = statistics.median(run["times_ms"])
    run["tokens_per_s"] = 1e3 * run["batch"] / run["ms"]
    if run["first_times_ms"]:
        run["first_ms"] = statistics.median(run["first_times_ms"])
    for name in ("times_ms", "first_times_ms"):
        run[name] = [round(x, 4) for x in run[name]]
    run["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None


def _plain(held: _Held) -> Run:
    """The model's forward, token by token, as it is called where no step can be captured."""
    model, cache = held.model, held.filled()
    length, times = cache.get_seq_length(), []
    token = torch.full((1, 1), QUESTION_TOKENS, device=model.device)
    with torch.inference_mode():
        for _ in range(FIRST_TOKENS + PLAIN_TOKENS):
            begin = time.perf_counter()
            logits = model(input_ids=token, past_key_values=cache, logits_to_keep=1).logits
            logits[:, -1].argmax(-1).tolist()  # the likeliest might be one that stands for a video
            times.append(1e3 * (time.perf_counter() - begin))
    cache.crop(length - cache.get_seq_length())
    return {"times_ms": times[FIRST_TOKENS:], "first_run_ms": times[0], "how": "plain steps"}


def _measured(held: _Held, *, request: DecodeRequest, batch: int) -> Run:
    """Answers by the decode loop, then steps alone."""
    model, cache = held.model, held.filled()
    kept = KeptSteps(model, cache)
    answering = _Answering(model, cache, kept, batch, request.new_tokens)
    begin = time.perf_counter()
    answering.stamps(1)
    run: Run = {"first_run_ms": 1e3 * (time.perf_counter() - begin)}
    for _ in range(2):
        answering.stamps(FIRST_TOKENS)
    firsts, times = [], []
    for _ in range(request.repeats):
        first, *later = answering.stamps(request.new_tokens)
        firsts.append(first)
        times += later
    run |= {"first_times_ms": firsts, "times_ms": times, "how": kept.decoding}
    if kept.decoding == "captured steps":
        with torch.inference_mode():
            steps = kept.of(batch, captures=True)
            run |= _steps_alone(steps, answering, model.device)
    return run


def _kernels(held: _Held, *, request: DecodeRequest, batch: int) -> Run:
    """What the GPU does of a step."""
    kept = KeptSteps(held.model, held.filled())
    answering = _Answering(held.model, held.filled(), kept, batch, request.new_tokens)
    answering.stamps(FIRST_TOKENS)
    sampler = Sampler.of(held.model, answering.settings, batch_size=batch)
    with torch.inference_mode():
        steps = kept.of(batch, captures=True)
        steps.begin(rows_needed(QUESTION_TOKENS, request.new_tokens))
        steps.read(answering.questions)
        chosen = steps.choose(sampler)

        def step() -> None:
            steps.step(chosen)
            steps.choose(sampler)

        return kernels_of_steps(step, held.model.device)._asdict()


@dataclass(frozen=True, slots=True)
class _Answering:
    """Questions after a cache."""

    model: VideoNSAForConditionalGeneration
    cache: VideoNSACache
    kept: KeptSteps
    batch: int
    new_tokens: int

    @property
    def settings(self) -> GenerationSettings:
        return GenerationSettings(max_new_tokens=self.new_tokens)

    @property
    def questions(self) -> list[list[int]]:
        """Text of any vocabulary."""
        return [[20 + (i + 7 * j) % 100 for i in range(QUESTION_TOKENS)] for j in range(self.batch)]

    def stamps(self, count: int) -> list[float]:
        """Milliseconds of the first tokens, each since the one before it."""
        length = self.cache.get_seq_length()
        wait_for(self.model.device)
        times, last = [], time.perf_counter()
        with closing(self._answer()) as answer:
            for _ in islice(answer, count):
                now = time.perf_counter()
                times.append(1e3 * (now - last))
                last = now
        self.cache.crop(length - self.cache.get_seq_length())
        return times

    def _answer(self) -> Generator[list[int]]:
        options: Any = {"settings": self.settings, "stop_ids": frozenset(), "kept": self.kept}
        if self.batch > 1:
            yield from decode_each(self.model, self.questions, self.cache, **options)
        else:
            inputs = {"input_ids": torch.tensor(self.questions, device=self.model.device)}
            yield from decode(self.model, inputs, self.cache, **options)


def _steps_alone(steps: StaticSteps, answering: _Answering, device: torch.device) -> Run:
    """What the host does of a step when nothing waits."""
    sampler = Sampler.of(answering.model, answering.settings, batch_size=answering.batch)
    wait_for(device)
    begin = time.perf_counter()
    steps.begin(rows_needed(QUESTION_TOKENS, answering.new_tokens))
    begin_ms = 1e3 * (time.perf_counter() - begin)
    steps.read(answering.questions)
    there = torch.empty(answering.batch, dtype=torch.int64, pin_memory=device.type == "cuda")

    chosen = steps.choose(sampler)  # its memory stays
    times, sampling = [], []
    for _ in range(min(HOST_STEPS, answering.new_tokens - 1)):
        begin = time.perf_counter()
        steps.step(chosen)
        stepped = time.perf_counter()
        steps.choose(sampler)
        sampled = time.perf_counter()
        there.copy_(chosen, non_blocking=True)
        times.append(1e3 * (time.perf_counter() - begin))
        sampling.append(1e3 * (sampled - stepped))
    wait_for(device)
    return {
        "begin_ms": begin_ms,
        "host_ms": statistics.median(times),
        "host_ms_min": min(times),
        "sampling_ms": statistics.median(sampling),
    }


def _baseline_runs(
    request: DecodeRequest,
    dtype: torch.dtype,
    known: set[tuple[str, int, int]],
    progress: Callable[[str], None],
) -> Iterator[Run]:
    """Of transformers, way by way; batches in order, one length after the other."""
    wanted = [
        (what, tokens, batch)
        for what in BASELINES
        for batch in request.batches
        for tokens in request.baseline_tokens
        if (what, tokens, batch) not in known
    ]
    if not wanted:
        return
    progress(f"random weights of transformers' {request.model} model")
    model = random_qwen(MODELS[request.model], device=request.device, dtype=dtype)
    weights = decoding_bytes(model.model.language_model, model.lm_head)
    row = row_bytes(model.config.get_text_config(), dtype)
    left = dict.fromkeys(BASELINES, request.baseline_seconds)
    for what, tokens, batch in wanted:
        run = _new_run(what, tokens, batch) | {"step_bytes": weights + batch * tokens * row}
        begin = time.perf_counter()
        baseline = Baseline(
            what=what,
            tokens=tokens,
            batch=batch,
            new_tokens=request.new_tokens // 2,
            seconds=left[what],
        )
        _fill_in(run, partial(baseline_run, model, baseline), request.device)
        left[what] -= time.perf_counter() - begin
        yield run
