"""Decoding by transformers' own model: its dynamic cache, and its static one with torch.compile."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videonsa.models._hf import DynamicCache, StaticCache

DYNAMIC = "transformers, dynamic cache"
STATIC = "transformers, static cache, torch.compile"
BASELINES = (DYNAMIC, STATIC)
FIRST_TOKENS = 4
"""Not timed: they compile, record CUDA graphs, and replay them once."""
FEWEST_SECONDS = 2.0
"""Less than that is no time to begin a run in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """One run."""

    what: str
    """Of `BASELINES`."""
    tokens: int
    """In the cache of each sample."""
    batch: int
    new_tokens: int
    seconds: float
    """It may take, compiling included."""


def baseline_run(model: Any, run: Baseline) -> dict[str, Any]:
    """Times of the tokens of one run.

    Args:
        model: transformers' own.
        run: what to measure.

    Raises:
        TimeoutError: it took longer than it may.
    """
    if run.seconds < FEWEST_SECONDS:
        raise TimeoutError("not begun: the time for this baseline was up")
    room = FIRST_TOKENS + run.new_tokens
    torch.compiler.reset()
    with time_limit(run.seconds), torch.no_grad():
        if run.what == DYNAMIC:
            cache, forward = _dynamic_cache(model, run), model
        else:
            cache = _static_cache(model, run, run.tokens + room)
            forward = torch.compile(model, mode="reduce-overhead")
        times = _token_times(forward, cache, run, model.device, count=room)
    return {
        "times_ms": times[FIRST_TOKENS:],
        "first_run_ms": times[0],
        "how": "a loop over its model's forward",
    }


def _token_times(
    forward: Callable[..., Any], cache: Any, run: Baseline, device: torch.device, *, count: int
) -> list[float]:
    """Milliseconds of each token: a step, its likeliest token, and waiting for it."""
    ids = torch.full((run.batch, 1), 20, device=device)
    positions = torch.full((3, run.batch, 1), run.tokens, device=device)
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        torch.compiler.cudagraph_mark_step_begin()
        logits = forward(
            input_ids=ids,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        positions = positions + 1
        logits[:, -1].argmax(-1).tolist()  # generate waits too, to know whether all have ended
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def _dynamic_cache(model: Any, run: Baseline) -> Any:
    config = model.config.get_text_config()
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*_random(model, run), layer)
    return cache


def _static_cache(model: Any, run: Baseline, size: int) -> Any:
    config = model.config.get_text_config()
    cache = StaticCache(config=config, max_cache_len=size)
    cache.early_initialization(
        run.batch,
        config.num_key_value_heads,
        config.hidden_size // config.num_attention_heads,
        model.dtype,
        model.device,
    )
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
        layer.cumulative_length.fill_(run.tokens)
    return cache


def _random(model: Any, run: Baseline) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, H, L, D]`."""
    config = model.config.get_text_config()
    size = config.hidden_size // config.num_attention_heads
    shape = run.batch, config.num_key_value_heads, run.tokens, size
    keys = torch.randn(shape, device=model.device, dtype=model.dtype)
    return keys, torch.randn_like(keys)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError once so many seconds are over, whatever the body makes of it.

    Of the main thread, on a system with signals.
    """
    up = TimeoutError(f"stopped after {seconds:.0f} s, compiling included")
    begin = time.perf_counter()

    def stop(*_: object) -> None:
        raise up

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if time.perf_counter() - begin < seconds:
            raise
        raise up from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
