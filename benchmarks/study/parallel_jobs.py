"""Commands that run in parallel on the GPUs of a machine, each after those that it needs."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal, NamedTuple

import torch

from videonsa.env import variables

Ended = Literal["done", "left", "failed"]
TOLD_EVERY = 60.0
"""Seconds between two reports on the running jobs."""
TOLD_OF_A_FAILURE = 40
"""Lines at the end of the log of a failed job that are shown."""


class Clock(NamedTuple):
    """When everything has to be finished, by `time.monotonic`."""

    deadline: float = math.inf

    @classmethod
    def of(cls, seconds: float | None) -> "Clock":
        """A deadline in so many seconds; None: no deadline."""
        return cls(math.inf if seconds is None else time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A command. It is done when `is_done` says so, whatever its exit status."""

    name: str
    command: Callable[[float], list[str]]
    """From the seconds that are left (`inf`: no deadline) to a module and its arguments."""
    log: Path
    is_done: Callable[[], bool]
    after: tuple[str, ...] = ()
    """Names of the jobs that have to be done first."""
    share: float = 1.0
    """Of a GPU; 0 uses none."""
    least_seconds: float = 0.0
    """It does not start with less time left."""


Call = Callable[[list[str], Path, float, str | None], int]
"""From module and arguments, log, seconds at most and GPU to an exit status."""


def call_apart(arguments: list[str], log: Path, seconds: float, gpu: str | None) -> int:
    """Run a module of Python in its own process, on a GPU; kill it when late.

    Raises:
        OSError: the log cannot be written, or the process does not start.
    """
    chosen = ["OMP_NUM_THREADS=1", "PYTHONUNBUFFERED=1"]
    chosen += [f"CUDA_VISIBLE_DEVICES={gpu}"] if gpu is not None else []
    command = ["env", *chosen, sys.executable, "-m", *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait(None if seconds == math.inf else max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def gpus() -> list[str]:
    """The visible GPUs, counted without creating a CUDA context."""
    stated = variables().get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log; of a progress bar its last state."""
    text = log.read_bytes().decode("utf-8", "replace") if log.exists() else ""
    lines = [line.rstrip().rpartition("\r")[2].strip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]


class _Runner:
    """Starts jobs where there is room for them, and hears how they end."""

    def __init__(
        self, *, at_once: int, clock: Clock, call: Call, tell: Callable[[str], None]
    ) -> None:
        self._at_once, self._clock, self._call, self._tell = at_once, clock, call, tell
        places: list[str | None] = [*gpus()]
        self._free = dict.fromkeys(places or [None], 1.0)
        self._running: dict[str, Job] = {}
        self._ends: SimpleQueue[tuple[Job, str | None, int | BaseException]] = SimpleQueue()
        self._told = time.monotonic()

    @property
    def is_idle(self) -> bool:
        return not self._running

    def start(self, job: Job) -> bool:
        """Start a job; False where there is no room for it now."""
        gpu = max(self._free, key=lambda name: self._free[name])
        if len(self._running) >= self._at_once or self._free[gpu] < job.share - 1e-6:
            return False
        self._free[gpu] -= job.share
        self._running[job.name] = job
        Thread(target=self._run, args=(job, gpu), daemon=True).start()
        return True

    def _run(self, job: Job, gpu: str | None) -> None:
        seconds = self._clock.left
        try:
            end: int | BaseException = self._call(job.command(seconds), job.log, seconds, gpu)
        except BaseException as error:  # told where the jobs are waited for
            end = error
        self._ends.put((job, gpu, end))

    def wait(self) -> tuple[Job, Ended] | None:
        """The next job that ends, and how; None where none did for a while.

        Raises:
            BaseException: what calling a job raised.
        """
        try:
            job, gpu, end = self._ends.get(timeout=TOLD_EVERY)
        except Empty:
            self._tell_all()
            return None
        del self._running[job.name]
        self._free[gpu] += job.share
        if isinstance(end, BaseException):
            raise end
        self._tell_all()
        if job.is_done():
            return job, "done"
        if end == 0 or self._clock.left <= 0:
            return job, "left"
        self._tell("\n".join([f"{job.name} failed:", *last_lines(job.log, TOLD_OF_A_FAILURE)]))
        return job, "failed"

    def _tell_all(self) -> None:
        """Say where the running jobs stand, now and then."""
        if time.monotonic() - self._told >= TOLD_EVERY:
            self._told = time.monotonic()
            for job in self._running.values():
                self._tell("".join([f"{job.name}: ", *last_lines(job.log, 1)]))


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    clock: Clock,
    call: Call = call_apart,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Ended]:
    """Run the jobs that are not done; a failure does not stop those that do not need it.

    Args:
        jobs: of those that can start, the first start first; each stands behind those it needs.
        at_once: how many run in parallel at most, those that use no GPU included.
        clock: the deadline. A job still running then is killed; all commands can resume from what
            they wrote.
        call: runs one command.
        tell: gets, now and then, the last log line of each running job, and the end of the log of
            a failed one.

    Returns:
        How each job ended, by name; `left`: there was no time to finish it, or one that it needs
        is not done.
    """
    ended: dict[str, Ended] = {job.name: "done" for job in jobs if job.is_done()}
    waiting = [job for job in jobs if job.name not in ended]
    runner = _Runner(at_once=at_once, clock=clock, call=call, tell=tell)
    while True:
        still: list[Job] = []
        for job in waiting:
            needs = [ended.get(name) for name in job.after]
            if clock.left < job.least_seconds or {"left", "failed"}.intersection(needs):
                ended[job.name] = "left"
            elif not all(needs) or not runner.start(job):
                still.append(job)
        waiting = still
        if runner.is_idle:
            return ended
        if (end := runner.wait()) is not None:
            ended[end[0].name] = end[1]
