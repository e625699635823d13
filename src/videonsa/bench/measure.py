"""Time and memory of tasks, side by side: every round times each task once."""

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias

import torch
from torch import Tensor

Status = Literal["measured", "out of memory", "refused", "failed", "not installed", "needs a GPU"]

FEWEST_RUNS = 3
"""Of a task that has used its seconds."""
WARM_UP_SECONDS = 0.2
MOST_WARM_UPS = 10
LONG_SECONDS = 5.0
FLUSH_BYTES = 2**28
"""Written before each run: more than any GPU's L2 cache."""
HEAD_START = 32
"""Such writes before each round, some milliseconds, so that the host is ahead of the GPU."""
LONGEST_ERROR = 300

METHOD = (
    "rounds, every other one in reverse order; in a round each op runs once untimed (of the "
    "backward pass alone its forward pass) and then timed, with CUDA events around and the L2 "
    "cache overwritten before; the host enqueues a round ahead of the GPU, as it does in a model, "
    "so launches count only where the GPU waits for them (host_ms is the time of enqueueing); "
    "extra memory is the peak of one warm run, of backward passes their forward included, less "
    "what was there before and less what is returned: the output and the gradients"
)

Outcome: TypeAlias = tuple[Tensor, ...]


class Task(NamedTuple):
    """What is run of one op."""

    whole: Callable[[], Outcome]
    """All that its memory is measured of."""
    start: Callable[[], Callable[[], Outcome]]
    """Runs what is not timed, and gives what is."""

    @classmethod
    def of(cls, call: Callable[[], Outcome]) -> Self:
        """A call that runs once untimed before it is timed."""

        def start() -> Callable[[], Outcome]:
            call()
            return call

        return cls(call, start)


@dataclass(kw_only=True, slots=True)
class Measurement:
    """What came of one task. Times are one for each run."""

    status: Status = "measured"
    error: str | None = None
    times_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)
    extra_bytes: int | None = None

    def fail(self, error: Exception) -> None:
        """Keep the error's line and no number."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self.status = "out of memory"
        elif isinstance(error, ModuleNotFoundError):
            self.status = "not installed"
        else:
            self.status = "refused" if isinstance(error, ValueError) else "failed"
        self.error = one_line(error)
        self.times_ms, self.host_ms, self.extra_bytes = [], [], None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all values and their median, minimum and maximum, in ms; memory in GB."""
        times = self.times_ms
        return {
            "status": self.status,
            "error": self.error,
            "ms": statistics.median(times) if times else None,
            "ms_min": min(times, default=None),
            "ms_max": max(times, default=None),
            "times_ms": times,
            "host_ms": statistics.median(self.host_ms) if self.host_ms else None,
            "extra_gb": None if self.extra_bytes is None else self.extra_bytes / 1e9,
        }


class Watch(Protocol):
    """How a device is timed."""

    def warm(self, task: Task) -> int | None:
        """Run a task until it is warm; bytes it needs beside what it takes and gives, if known."""

    def round(self, tasks: Sequence[tuple[Task, Measurement]]) -> None:
        """Time each task once and add its times to its measurement."""

    def free(self) -> None:
        """Give back what a failed task had reserved."""


class HostWatch:
    """Wall time of a CPU; memory is not measured."""

    def warm(self, task: Task) -> int | None:
        """Run it once."""
        task.whole()
        return None

    def round(self, tasks: Sequence[tuple[Task, Measurement]]) -> None:
        """One by one; a CPU has nothing to enqueue, so both times are the same."""
        for task, found in tasks:
            try:
                timed = task.start()
                begin = time.perf_counter()
                timed()
            except Exception as error:  # whatever an op raises, others follow
                found.fail(error)
                continue
            elapsed = 1e3 * (time.perf_counter() - begin)
            found.times_ms.append(elapsed)
            found.host_ms.append(elapsed)

    def free(self) -> None:
        """The host's memory is given back at once."""


class CudaWatch:
    """CUDA events of a GPU; memory of PyTorch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def warm(self, task: Task) -> int | None:
        """First a run that compiles, then one whose memory counts, then until clocks are up."""
        task.whole()
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        begin = time.perf_counter()
        outcome = task.whole()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        extra = peak - before - storage_bytes(outcome)
        del outcome
        for _ in range(MOST_WARM_UPS):
            if time.perf_counter() - begin > WARM_UP_SECONDS:
                break
            task.whole()
            torch.cuda.synchronize(self._device)
        return extra

    def round(self, tasks: Sequence[tuple[Task, Measurement]]) -> None:
        """Enqueue all, then read all events."""
        torch.cuda.synchronize(self._device)
        for _ in range(HEAD_START):
            self._flush.zero_()
        events = []
        for task, found in tasks:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                timed = task.start()  # clocks as this op leaves them, not the one before it
                self._flush.zero_()
                begin.record()
                enqueued = time.perf_counter()
                timed()
            except Exception as error:  # whatever an op raises, others follow
                found.fail(error)
                continue
            found.host_ms.append(1e3 * (time.perf_counter() - enqueued))
            end.record()
            del timed  # and with it an output, before the next op needs memory
            events.append((begin, end, found))
        torch.cuda.synchronize(self._device)
        for begin, end, found in events:
            found.times_ms.append(begin.elapsed_time(end))

    def free(self) -> None:
        """Empty the allocator's cache."""
        torch.cuda.empty_cache()


def watch_of(device: torch.device) -> Watch:
    """The watch that fits a device."""
    return CudaWatch(device) if device.type == "cuda" else HostWatch()


def measure_in_turn(
    tasks: Mapping[str, Task],
    *,
    watch: Watch,
    repeats: int,
    seconds: float = 10.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Measurement]:
    """Warm every task, then time all of them in rounds.

    Args:
        tasks: by name.
        watch: of the device they run on.
        repeats: timed runs of each task.
        seconds: a task that was timed so long in all is left out of later rounds, but not before
            it has run three times.
        progress: told a line when a task takes long to warm, which is mostly compiling, and one
            when it is warm.

    Returns:
        A measurement for each name; a task that raises has its error line and no number.
    """
    found = {name: Measurement() for name in tasks}
    for name, task in tasks.items():
        with _told_if_long(name, progress):
            try:
                found[name].extra_bytes = watch.warm(task)
            except Exception as error:  # whatever an op raises, others follow
                found[name].fail(error)
        if found[name].error:
            watch.free()
    for index in range(repeats):
        turn = [(task, found[name]) for name, task in tasks.items()]
        turn = [(task, state) for task, state in turn if _goes_on(state, seconds)]
        watch.round(turn[::-1] if index % 2 else turn)
        if any(state.error for _, state in turn):
            watch.free()
    return found


@contextmanager
def _told_if_long(name: str, progress: Callable[[str], None]) -> Iterator[None]:
    """A line during a warm-up, since the run may be cut off in it, and one at its end."""
    late = threading.Timer(LONG_SECONDS, progress, [f"{name}: still warming up"])
    late.daemon = True
    begin = time.perf_counter()
    late.start()
    try:
        yield
    finally:
        late.cancel()
    if (took := time.perf_counter() - begin) > LONG_SECONDS:
        progress(f"{name}: warm after {took:.0f} s")


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory that tensors hold, shared storage once."""
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _goes_on(found: Measurement, seconds: float) -> bool:
    used = sum(found.times_ms) / 1e3
    return found.error is None and (used < seconds or len(found.times_ms) < FEWEST_RUNS)


def one_line(error: Exception) -> str:
    """An error as one line that is not too long."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= LONGEST_ERROR else text[: LONGEST_ERROR - 3] + "..."
