"""Commands of `videonsa` that run in parallel, each on one GPU, up to a common deadline."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Literal, NamedTuple

import torch

from videonsa.env import variables

Ended = Literal["done", "left", "failed"]
LEAST_SECONDS = 100.0
"""No job starts with less time left: imports and loading take much of it."""
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
    """From the seconds that are left (`inf`: no deadline) to the arguments of `videonsa`."""
    log: Path
    is_done: Callable[[], bool]


Call = Callable[[list[str], Path, float, int], int]
"""From arguments, log, seconds at most and number of the slot to an exit status."""


def call_apart(arguments: list[str], log: Path, seconds: float, slot: int) -> int:
    """Run `videonsa` in its own process, on GPU `slot` modulo their number; kill it when late.

    Raises:
        OSError: the log cannot be written, or the process does not start.
    """
    gpus = _gpus()
    chosen = ["OMP_NUM_THREADS=1", "PYTHONUNBUFFERED=1"]
    chosen += [f"CUDA_VISIBLE_DEVICES={gpus[slot % len(gpus)]}"] if gpus else []
    command = ["env", *chosen, sys.executable, "-m", "videonsa", *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait(None if seconds == math.inf else seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _gpus() -> list[str]:
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


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    clock: Clock,
    call: Call = call_apart,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Ended]:
    """Run the jobs that are not done, `at_once` in parallel; a failure does not stop the others.

    Args:
        jobs: they start in this order.
        at_once: how many run in parallel.
        clock: the deadline. A job still running then is killed; all commands can resume from what
            they wrote.
        call: runs one command.
        tell: gets, now and then, the last log line of each running job, and the end of the log of
            a failed one.

    Returns:
        How each job ended, by name; `left`: there was no time to finish it.
    """
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(at_once):
        slots.put(slot)
    running: dict[str, Job] = {}
    all_ended = Event()

    def run(job: Job) -> Ended:
        if job.is_done():
            return "done"
        slot = slots.get()
        try:
            seconds = clock.left
            if seconds < LEAST_SECONDS:
                return "left"
            running[job.name] = job
            status = call(job.command(seconds), job.log, seconds, slot)
        finally:
            running.pop(job.name, None)
            slots.put(slot)
        if job.is_done():
            return "done"
        if status == 0 or clock.left <= 0:
            return "left"
        tell("\n".join([f"{job.name} failed:", *last_lines(job.log, TOLD_OF_A_FAILURE)]))
        return "failed"

    def watch() -> None:
        while not all_ended.wait(TOLD_EVERY):
            for job in list(running.values()):
                tell("".join([f"{job.name}: ", *last_lines(job.log, 1)]))

    with ThreadPoolExecutor(at_once + 1) as pool:
        watching = pool.submit(watch)
        try:
            return dict(zip((job.name for job in jobs), pool.map(run, jobs), strict=True))
        finally:
            all_ended.set()
            watching.result()
