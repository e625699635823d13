"""Reads the headers of many files, in processes, so that no file can stop a build."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple

from videonsa.data.isolated import CallFailed, IsolatedCaller
from videonsa.data.probe_journal import FileState, Probed, ProbeFailure, ProbeJournal
from videonsa.data.reasons import DropError, Reason
from videonsa.errors import VideoError
from videonsa.video.framelist import FrameList
from videonsa.video.source import VideoPath, open_source

DEFAULT_TIMEOUT = 30.0
"""Seconds that the header of one file may take."""


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
    except Exception as error:  # an error of ours on one file must not stop the build
        return ProbeFailure(Reason.BROKEN, f"{path}: {type(error).__name__}: {error}")


def probe_all(
    targets: Iterable[Target],
    *,
    journal: ProbeJournal,
    workers: int,
    timeout: float = DEFAULT_TIMEOUT,
    probe: Callable[[VideoPath], Probed] = probe_file,
) -> Iterator[Target]:
    """Probe what the journal does not know, each result at once into it; gives what is done.

    A file that takes longer than `timeout` seconds is a failure, and so is one that ends its
    process; a new process takes the next file.

    Args:
        targets: what to probe, each once.
        journal: opened for writing.
        workers: processes.
        timeout: seconds for one file.
        probe: what a process does with a file; a function of a module.

    """
    waiting = (target for target in targets if target.state not in journal)
    idle = SimpleQueue[IsolatedCaller]()
    callers = [IsolatedCaller(deadline=timeout) for _ in range(workers)]
    for caller in callers:
        idle.put(caller)
    pool = ThreadPoolExecutor(workers)
    running: set[Future[tuple[Target, Probed]]] = set()
    try:
        while True:
            for target in islice(waiting, 2 * workers - len(running)):
                running.add(pool.submit(_probe_apart, target, idle, probe))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                target, probed = future.result()
                journal.add(target.state, probed)
                yield target
    finally:
        pool.shutdown(cancel_futures=True)
        for caller in callers:
            caller.close()


def _probe_apart(
    target: Target, idle: "SimpleQueue[IsolatedCaller]", probe: Callable[[VideoPath], Probed]
) -> tuple[Target, Probed]:
    """Probe in a process that no other thread uses meanwhile."""
    caller = idle.get()
    try:
        return target, caller(probe, target.path)
    except CallFailed as failure:
        reason = Reason.TIMEOUT if failure.kind == "hangs" else Reason.BROKEN
        return target, ProbeFailure(reason, f"{target.path}: {failure.reason}")
    finally:
        idle.put(caller)
