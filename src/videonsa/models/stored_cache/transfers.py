"""Files that are written or read beside one another, with one bar for all their bytes."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from tqdm import tqdm

from videonsa.machine import usable_cores

_AT_ONCE = 8
"""Files, and threads: a checksum goes at 1 to 4 GB/s, and so does one queue of a disk."""
_PROGRESS_DELAY = 1.0
"""Seconds before the bar shows."""

Result = TypeVar("Result")
Done = Callable[[int], None]


class _StoppedError(Exception):
    """Another transfer failed, or the user has had enough."""


class Transfers(Generic[Result]):
    """Work in threads, each told how to report the bytes it has done."""

    def __init__(self, doing: str, num_bytes: int, *, progress: bool | None) -> None:
        """Make ready.

        Args:
            doing: what is done, in a word.
            num_bytes: of all together.
            progress: a bar on stderr once it takes over a second; None is on a terminal only.
        """
        self._pool = ThreadPoolExecutor(min(_AT_ONCE, usable_cores()))
        self._begun: list[Future[Result]] = []
        self._stop, self._lock = threading.Event(), threading.Lock()
        shown = sys.stderr.isatty() if progress is None else progress
        self._bar = tqdm(
            total=num_bytes,
            desc=doing,
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            delay=_PROGRESS_DELAY,
            disable=not shown,
            leave=False,
        )

    def __enter__(self) -> Self:
        return self

    def start(self, work: Callable[[Done], Result]) -> None:
        """Begin, as soon as a thread is free, what calls `done` with the bytes of every step."""
        self._begun.append(self._pool.submit(work, self._done))

    def finish(self) -> list[Result]:
        """Wait for all; their results in the order in which they were started."""
        return [future.result() for future in self._begun]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Where something failed, all stop at their next step; none runs on behind this."""
        if error is not None:
            self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        self._bar.close()

    def _done(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        with self._lock:
            self._bar.update(num_bytes)
