"""Wall time of long calls that wait for the host, such as a whole model."""

import time
from collections.abc import Callable

import torch


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

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize(device)

    before()
    call()
    wait()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(repeats):
        before()
        wait()
        begin = time.perf_counter()
        call()
        wait()
        times.append(1e3 * (time.perf_counter() - begin))
    return times, torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None
