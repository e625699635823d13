"""Commands of `videonsa` that run at the same time, each on a GPU, up to a common deadline."""

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
"""With less than this left no job starts: importing and loading alone take a good part of it."""
TOLD_EVERY = 60.0
"""Seconds from one word about the jobs that run to the next."""
TOLD_OF_A_FAILURE = 40
"""Last lines of its log."""


class Clock(NamedTuple):
    """When everything has to be over, by `time.monotonic`."""

    deadline: float = math.inf

    @classmethod
    def of(cls, seconds: float | None) -> "Clock":
        """So many seconds from now; None: never."""
        return cls(math.inf if seconds is None else time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A command; it is done when `is_done` says so, however it ended."""

    name: str
    command: Callable[[float], list[str]]
    """Arguments of `videonsa` for so many seconds at most, `inf` without an end."""
    log: Path
    is_done: Callable[[], bool]


Call = Callable[[list[str], Path, float, int], int]
"""Arguments, log, seconds at most and number of the slot to an exit status."""


def call_apart(arguments: list[str], log: Path, seconds: float, slot: int) -> int:
    """Run `videonsa` in a process of its own, on GPU `slot` modulo their number; killed when late.

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
    """The GPUs that may be used; counted without a context on them."""
    stated = variables().get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


def last_lines(log: Path, count: int) -> list[str]:
    """Of what a job has said so far; of a progress bar its last state."""
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
    """Run those that are not done, so many at the same time; one that fails leaves the others.

    Args:
        jobs: in the order in which they start.
        at_once: how many run at the same time.
        clock: when they have to be over. What does not end by itself is killed then: all that the
            commands write can be gone on with.
        call: runs one.
        tell: told what each that runs said last, now and then, and the end of what failed.

    Returns:
        How each ended, by its name: `left` is what there was no time for.
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
