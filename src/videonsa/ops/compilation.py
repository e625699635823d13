"""Kernels compile when they are first used on a machine: being told of it, and doing it at once."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from videonsa.ops.triton.support import INSTALLED

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What was compiled so far."""

    count: int
    """Kernels; those that Triton found in its cache are not counted."""
    seconds: float
    """From the beginning of the first to the end of the last."""


class Compilation:
    """Counts the kernels that are compiled while `watch_compilation` lasts."""

    def __init__(
        self, notice: Callable[[Compiled], None] | None, clock: Callable[[], float]
    ) -> None:
        self.compiled = Compiled(count=0, seconds=0.0)
        self._notice = notice
        self._clock = clock
        self._begin: float | None = None
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """A kernel is compiled, which took so long; called by any thread."""
        with self._lock:
            now = self._clock()
            if self._begin is None:
                self._begin = now - seconds
            self.compiled = Compiled(count=self.compiled.count + 1, seconds=now - self._begin)
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
        notice: called after each kernel, by the thread that compiled it, one call at a time.
        clock: seconds.
    """
    found = Compilation(notice, clock)
    if not (INSTALLED and torch.cuda.is_available()):
        yield found
        return
    from videonsa.ops.triton.compilation import listening  # needs Triton

    with listening(found.add):
        yield found


def compile_together(call: Callable[[], _Result], *, workers: int) -> _Result:
    """Call something whose ops are asked for `backend="triton"` on tensors of the meta device.

    Their kernels are compiled for the current GPU, several at a time, and nothing is computed.
    Returns when all are ready; of a kernel that does not compile, Triton's error is raised.
    """
    from videonsa.ops.triton.compilation import side_by_side  # needs Triton

    return side_by_side(call, workers=workers)
