"""Headers of many files, in processes that a hanging or crashing file cannot stop."""

import hashlib
import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from videonsa.data.journal import FileState, Journal, Probed, ProbeFailure
from videonsa.data.reasons import DropError, Reason
from videonsa.errors import VideoError
from videonsa.video.images import FrameList
from videonsa.video.source import VideoPath, open_source

DEFAULT_TIMEOUT = 30.0
"""Seconds that the header of one file may take."""
START_TIMEOUT = 120.0
"""Seconds that a process may take to start."""


class Target(NamedTuple):
    """A file to probe, and what it was like when it was found."""

    state: FileState
    path: VideoPath


def target_of(path: VideoPath) -> Target:
    """A file as it is now.

    Raises:
        DropError: it is not there.

    """
    if isinstance(path, FrameList):
        files = [_stat(str(frame)) for frame in path.paths]
        names = "\0".join([str(path.fps), *map(str, path.paths)])
        key = f"{path}, {hashlib.sha256(names.encode()).hexdigest()[:16]}"
        state = FileState(key, sum(size for size, _ in files), max(when for _, when in files))
        return Target(state, path)
    return Target(FileState(str(path), *_stat(str(path))), path)


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise DropError(Reason.MISSING, path) from error
    return found.st_size, found.st_mtime_ns


def probe_file(path: VideoPath) -> Probed:
    """What the header of a file says; at most one frame is decoded."""
    try:
        return open_source(path).info
    except VideoError as error:
        return ProbeFailure(Reason.BROKEN, str(error))
    except Exception as error:  # a defect on one file must not stop the build
        return ProbeFailure(Reason.BROKEN, f"{path}: {type(error).__name__}: {error}")


def probe_all(
    targets: Iterable[Target],
    *,
    journal: Journal,
    workers: int,
    timeout: float = DEFAULT_TIMEOUT,
    probe: Callable[[VideoPath], Probed] = probe_file,
) -> Iterator[Target]:
    """Probe what the journal does not know, each result at once into it; gives what is done.

    A file that takes longer than `timeout` seconds is a failure, and so is one that ends its
    process; a new process goes on with the next.

    Args:
        targets: what to probe, each once.
        journal: opened for writing.
        workers: processes.
        timeout: seconds for one file.
        probe: what a process does with a file; a function of a module.

    """
    waiting = deque(target for target in targets if target.state not in journal)
    room = [_Worker(probe, timeout=timeout) for _ in range(min(workers, len(waiting)))]
    try:
        while waiting or any(worker.target for worker in room):
            for worker in room:
                if worker.idle and waiting:
                    worker.begin(waiting.popleft())
            now = time.monotonic()
            nearest = min(worker.deadline for worker in room)
            wait([worker.connection for worker in room], timeout=max(0.0, nearest - now))
            for worker in room:
                done = worker.result()
                if done is not None:
                    target, probed = done
                    journal.add(target.state, probed)
                    yield target
    finally:
        for worker in room:
            worker.stop()


class _Worker:
    """A process that probes one file at a time, and is replaced when it hangs or ends."""

    def __init__(self, probe: Callable[[VideoPath], Probed], *, timeout: float) -> None:
        self._probe = probe
        self._timeout = timeout
        self.target: Target | None = None
        self._start()

    def _start(self) -> None:
        self.ready = False
        self.deadline = time.monotonic() + START_TIMEOUT
        # Spawned, not forked: it holds no lock and no open file of ours.
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, self._probe), daemon=True)
        self._process.start()
        far.close()

    @property
    def idle(self) -> bool:
        """Whether it can begin a file."""
        return self.ready and self.target is None

    def begin(self, target: Target) -> None:
        self.target = target
        self.deadline = time.monotonic() + self._timeout
        with suppress(OSError):  # it has ended: `result` finds that out
            self.connection.send(target.path)

    def result(self) -> tuple[Target, Probed] | None:
        """What has come of its file; None while it works, waits or starts."""
        try:
            if self.connection.poll():
                probed = self.connection.recv()
            elif time.monotonic() < self.deadline:
                return None
            else:
                seconds = f"{self._timeout:g} s"
                probed = self._replaced(Reason.TIMEOUT, f"its header took over {seconds} to read")
        except (EOFError, OSError):
            probed = self._replaced(Reason.BROKEN, "reading its header ended the process")
        if probed is None:
            self.ready = True
            self.deadline = math.inf
            return None
        target, self.target = self.target, None
        self.deadline = math.inf if self.ready else self.deadline
        assert target is not None, "a result came without a file"
        return target, probed

    def _replaced(self, reason: Reason, problem: str) -> ProbeFailure:
        if not self.ready:
            raise RuntimeError(f"a process for probing does not start: {problem}")
        assert self.target is not None, "a process ended without a file"
        self.stop()
        self._start()
        return ProbeFailure(reason, f"{self.target.path}: {problem}")

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(
    connection: "Connection[Probed | None, VideoPath]", probe: Callable[..., Probed]
) -> None:
    """Probe what comes until the other side is closed. Says None first: it has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    with suppress(EOFError, OSError):
        connection.send(None)
        while True:
            connection.send(probe(connection.recv()))
