"""Wall time of long calls that wait for the host, such as a whole model."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from videonsa.bench.measure import one_line


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_times(
    call: Callable[[], object],
    *,
    device: torch.device,
    repeats: int,
    before: Callable[[], None] = lambda: None,
) -> tuple[list[float], float | None]:
    """Run a call once untimed, then `repeats` times.

    Args:
        call: what is timed.
        device: waited for before and after.
        repeats: timed runs.
        before: run before each, untimed.

    Returns:
        Milliseconds of each run, and the peak of allocated memory in GB, None on a CPU.
    """
    on_gpu = device.type == "cuda"
    before()
    call()
    wait_for(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(repeats):
        before()
        wait_for(device)
        begin = time.perf_counter()
        call()
        wait_for(device)
        times.append(1e3 * (time.perf_counter() - begin))
    return times, torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None


def timed_stage(
    name: str,
    call: Callable[[], object],
    *,
    device: torch.device,
    repeats: int,
    before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Times and peak memory of a call without gradients, as JSON keeps a stage of a model.

    An error has its line in place of numbers.

    Args:
        name: of the stage.
        call: what is timed, as by `wall_times`.
        device: waited for before and after.
        repeats: timed runs.
        before: run before each, untimed.
    """
    try:
        with torch.inference_mode():
            times, peak = wall_times(call, device=device, repeats=repeats, before=before)
    except Exception as error:  # whatever a stage raises, others follow
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return failed_stage(name, error)
    return {
        "name": name,
        "error": None,
        "ms": statistics.median(times),
        "times_ms": times,
        "peak_gb": peak,
    }


def failed_stage(name: str, error: Exception) -> dict[str, Any]:
    """A stage that has the line of an error, and no numbers."""
    numbers: dict[str, Any] = {"ms": None, "times_ms": [], "peak_gb": None}
    return {"name": name, **numbers, "error": one_line(error)}
