"""The kernels of a decode step, as PyTorch's profiler sees them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 4


class StepKernels(NamedTuple):
    """Of one step."""

    kernels: float
    """How many."""
    busy_ms: float
    """In which at least one runs."""
    span_ms: float
    """From the first to the end of the last of some steps in a row, for each of them."""


def kernels_of_steps(step: Callable[[], object], device: torch.device) -> StepKernels:
    """Run some steps in a row under the profiler.

    Args:
        step: enqueues one.
        device: a GPU.
    """
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events() or ()
        if event.device_type.name == "CUDA"
    )
    if not spans:
        raise RuntimeError("the profiler saw no kernels")
    begin, end = spans[0][0], max(stop for _, stop in spans)
    return StepKernels(
        kernels=len(spans) / STEPS,
        busy_ms=covered(spans) / 1e3 / STEPS,
        span_ms=(end - begin) / 1e3 / STEPS,
    )


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length that spans cover together, given in order of their beginnings."""
    length, reached = 0.0, float("-inf")
    for start, stop in spans:
        length += max(stop - max(start, reached), 0.0)
        reached = max(reached, stop)
    return length
