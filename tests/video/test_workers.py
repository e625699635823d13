import threading
import time
from contextlib import contextmanager

import pytest

from videonsa.video.workers import TASKS_AHEAD, run_in_order

WORKERS = [1, 2, 3, 5]


class Counter:
    """Tasks that yield (task, step), and what they did."""

    def __init__(self, *, steps=4, fail_at=None, pause=0.0):
        self.steps, self.fail_at, self.pause = steps, fail_at, pause
        self.made = 0
        self.opened = 0
        self.closed = 0
        self.lock = threading.Lock()

    @contextmanager
    def room(self, stopped):
        with self.lock:
            self.opened += 1
        try:
            yield self.run
        finally:
            with self.lock:
                self.closed += 1

    def run(self, task):
        for step in range(self.steps):
            if (task, step) == self.fail_at:
                raise ValueError(f"task {task} step {step}")
            time.sleep(self.pause * (1 + task % 3))
            with self.lock:
                self.made += 1
            yield task, step


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("video worker")]


@pytest.mark.parametrize("workers", WORKERS)
def test_results_come_in_order_and_nothing_is_left(workers):
    counter = Counter(pause=1e-3)
    results = list(run_in_order(20, counter.room, workers=workers, ahead=2))
    assert results == [(task, step) for task in range(20) for step in range(4)]
    assert counter.opened == counter.closed <= workers
    assert worker_threads() == []


@pytest.mark.parametrize("workers", WORKERS)
def test_results_that_wait_are_bounded(workers):
    counter, ahead = Counter(steps=50), 3
    # Each worker may hold one more, that finds no room.
    limit = TASKS_AHEAD * workers * ahead + workers
    most = 0
    for taken, _ in enumerate(run_in_order(40, counter.room, workers=workers, ahead=ahead)):
        if taken % 100 == 0:
            time.sleep(0.01)
        most = max(most, counter.made - taken - 1)
    assert most <= limit
    assert workers == 1 or most >= ahead


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_comes_where_its_result_would_stand_and_stops_the_others(workers):
    counter = Counter(fail_at=(6, 2), pause=1e-4)
    results = []
    with pytest.raises(ValueError, match="task 6 step 2"):
        results.extend(run_in_order(10**6, counter.room, workers=workers, ahead=2))
    assert results == [(task, step) for task in range(6) for step in range(4)] + [(6, 0), (6, 1)]
    assert worker_threads() == []
    assert counter.opened == counter.closed


@pytest.mark.parametrize("workers", WORKERS)
def test_the_first_of_two_errors_is_raised(workers):
    class Late(Counter):
        def run(self, task):
            if task == 0:
                time.sleep(0.05)
            raise KeyError(task)
            yield

    with pytest.raises(KeyError, match="0"):
        list(run_in_order(5, Late().room, workers=workers, ahead=1))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_room_that_does_not_open_is_an_error(workers):
    @contextmanager
    def room(stopped):
        raise OSError("gone")
        yield

    with pytest.raises(OSError, match="gone"):
        list(run_in_order(5, room, workers=workers, ahead=1))
    assert worker_threads() == []


@pytest.mark.parametrize("workers", WORKERS)
def test_closing_early_stops_the_workers(workers):
    counter = Counter(steps=10**9)
    results = run_in_order(50, counter.room, workers=workers, ahead=2)
    assert next(results) == (0, 0)
    assert len(worker_threads()) == (0 if workers == 1 else workers)
    results.close()
    assert worker_threads() == []
    assert counter.opened == counter.closed


def test_one_worker_beside_the_caller_goes_on_while_nothing_is_asked_of_it():
    counter = Counter(steps=3)
    results = run_in_order(4, counter.room, workers=1, ahead=3, beside=True)
    assert next(results) == (0, 0)
    assert len(worker_threads()) == 1
    deadline = time.monotonic() + 30
    while counter.made < 3 * TASKS_AHEAD and time.monotonic() < deadline:
        time.sleep(1e-3)
    assert counter.made == 3 * TASKS_AHEAD  # as far as may wait
    assert list(results) == [(task, step) for task in range(4) for step in range(3)][1:]
    assert worker_threads() == []


def test_workers_are_told_that_nothing_is_wanted_any_more():
    told = threading.Event()

    @contextmanager
    def room(stopped):
        def run(task):
            yield task
            while not stopped():
                time.sleep(1e-3)
            told.set()

        yield run

    results = run_in_order(4, room, workers=2, ahead=1)
    next(results)
    results.close()
    assert told.is_set()
