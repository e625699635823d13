"""Kernels compile when they are first used on a machine: being told of it, and doing it at once."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from videonsa.ops.triton.support import INSTALLED

_Result = TypeVar("_Result")
PATIENCE = 0.5
"""Seconds that a kernel takes at most which is on the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What was compiled so far."""

    count: int
    """Kernels; those that Triton found in its cache are not counted."""
    seconds: float
    """From the beginning of the first to the end of the last."""


class Compilation:
    """Counts the kernels that are compiled while `watch_compilation` lasts.

    Whether a kernel is compiled or was on the disk is known when it is there. One that is not there
    in `PATIENCE` is compiled.
    """

    def __init__(
        self, notice: Callable[[Compiled], None] | None, clock: Callable[[], float]
    ) -> None:
        self.compiled = Compiled(count=0, seconds=0.0)
        self._notice = notice
        self._clock = clock
        self._asked: set[Hashable] = set()
        self._num_ended = 0
        self._moved = 0.0  # when a kernel was last asked for alone, or was there
        self._begin: float | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def begun(self, kernel: Hashable) -> None:
        """A kernel is asked for; called by any thread."""
        with self._lock:
            if kernel in self._asked:
                return
            if not self._is_waiting:
                self._moved = self._clock()
            self._asked.add(kernel)
            if self._begin is None and self._timer is None and self._notice is not None:
                self._wait(PATIENCE)

    def ended(self, seconds: float | None) -> None:
        """A kernel is there: compiled in so long, or found; called by any thread."""
        with self._lock:
            self._moved = now = self._clock()
            self._num_ended += 1
            if seconds is None:
                return
            if self._begin is None:
                self._begin = now - seconds
            self._tell(self.compiled.count + 1, now)

    def close(self) -> None:
        """Tell no more."""
        with self._lock:
            self._notice = None
            if self._timer is not None:
                self._timer.cancel()

    @property
    def _is_waiting(self) -> bool:
        """Whether a kernel is asked for that is not there."""
        return len(self._asked) > self._num_ended

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        """Tell that kernels are compiled before the first of them is there."""
        with self._lock:
            self._timer = None
            if self._begin is not None or not self._is_waiting:
                return
            now = self._clock()
            left = self._moved + PATIENCE - now
            if left > 0:
                self._wait(left)
                return
            self._begin = self._moved
            self._tell(0, now)

    def _tell(self, count: int, now: float) -> None:
        assert self._begin is not None, "something is compiled"
        self.compiled = Compiled(count=count, seconds=now - self._begin)
        if self._notice is not None:
            self._notice(self.compiled)


@contextmanager
def watch_compilation(
    notice: Callable[[Compiled], None] | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Compilation]:
    """Count the kernels that are compiled inside, by whichever library and thread.

    Args:
        notice: called soon after the first kernel is begun, then after each that is compiled, by
            any thread, one call at a time.
        clock: seconds.
    """
    found = Compilation(notice, clock)
    if not (INSTALLED and torch.cuda.is_available()):
        yield found
        return
    from videonsa.ops.triton.compilation import listening  # needs Triton

    try:
        with listening(found.begun, found.ended):
            yield found
    finally:
        found.close()


def compile_together(call: Callable[[], _Result], *, workers: int) -> _Result:
    """Call something whose ops are asked for `backend="triton"` on tensors of the meta device.

    Their kernels are compiled for the current GPU, several at a time, and nothing is computed.
    Returns when all are ready; of a kernel that does not compile, Triton's error is raised.
    """
    from videonsa.ops.triton.compilation import side_by_side  # needs Triton

    return side_by_side(call, workers=workers)
