"""Tasks that yield results, on threads of their own, and the results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
TASKS_AHEAD = 2
"""Tasks a worker that may be begun before the results of the first are taken."""


class WorkerRoom(Protocol[Result_co]):
    """Opens what one worker needs, and gives a function that runs the task of a number."""

    def __call__(
        self, stopped: Callable[[], bool]
    ) -> AbstractContextManager[Callable[[int], Iterator[Result_co]]]:
        """`stopped` says that no result is wanted any more."""


def run_in_order(
    num_tasks: int, room: WorkerRoom[Result], *, workers: int, ahead: int, beside: bool = False
) -> Generator[Result, None, None]:
    """The results of task 0, of task 1, and so on, while `workers` threads run the tasks.

    An error of a task is raised where its next result would stand. Closing the iterator stops the
    threads and waits for them.

    Args:
        num_tasks: how many tasks there are.
        room: opened once a worker, in its thread.
        workers: threads, at least 1.
        ahead: results of one task that may wait to be taken; `TASKS_AHEAD * workers` tasks can
            have so many waiting.
        beside: one worker has a thread of its own too; otherwise it runs in that of the caller,
            when a result is asked for.

    """
    if workers == 1 and not beside:
        with room(lambda: False) as run:
            for task in range(num_tasks):
                yield from run(task)
        return
    board: _Board[Result] = _Board(num_tasks, most_begun=TASKS_AHEAD * workers, ahead=ahead)
    threads = [
        Thread(target=_work, args=(board, room), name=f"video worker {number}", daemon=True)
        for number in range(workers)
    ]
    try:
        for thread in threads:
            thread.start()
        for task in range(num_tasks):
            yield from board.take_all(task)
    finally:
        board.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _work(board: "_Board[Result]", room: WorkerRoom[Result]) -> None:
    task = board.claim()
    if task is None:
        return
    try:
        with room(board.stopped) as run:
            while task is not None:
                with closing(_as_generator(run(task))) as results:
                    for result in results:
                        if not board.put(task, result):
                            return
                board.finish(task)
                task = board.claim()
    except BaseException as error:  # raised again where the results are taken
        if task is not None:
            board.finish(task, error)


def _as_generator(results: Iterator[Result]) -> Generator[Result, None, None]:
    yield from results


@dataclass(eq=False)
class _Lane(Generic[Result]):
    """What one task has given and nobody has taken yet."""

    results: deque[Result] = field(default_factory=deque)
    done: bool = False
    error: BaseException | None = None


class _Board(Generic[Result]):
    """Which tasks are begun, and their lanes. Every method may be called from any thread."""

    def __init__(self, num_tasks: int, *, most_begun: int, ahead: int) -> None:
        self._num_tasks = num_tasks
        self._most_begun = most_begun
        self._ahead = ahead
        self._changed = Condition()
        self._lanes: dict[int, _Lane[Result]] = {}
        self._next = 0
        self._taken = 0
        self._stopped = False

    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._lanes.clear()
            self._changed.notify_all()

    def claim(self) -> int | None:
        """The next task, as soon as it may begin; None if there is none."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped
                    or self._next == self._num_tasks
                    or self._next < self._taken + self._most_begun
                )
            )
            if self._stopped or self._next == self._num_tasks:
                return None
            self._next += 1
            self._lanes[self._next - 1] = _Lane()
            self._changed.notify_all()
            return self._next - 1

    def put(self, task: int, result: Result) -> bool:
        """Wait for room in the task's lane. Whether results are still wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or len(self._lanes[task].results) < self._ahead
            )
            if self._stopped:
                return False
            self._lanes[task].results.append(result)
            self._changed.notify_all()
            return True

    def finish(self, task: int, error: BaseException | None = None) -> None:
        with self._changed:
            if not self._stopped:
                self._lanes[task].error = error
                self._lanes[task].done = True
                self._changed.notify_all()

    def take_all(self, task: int) -> Iterator[Result]:
        with self._changed:
            self._changed.wait_for(lambda: task in self._lanes)
            lane = self._lanes[task]
        while True:
            with self._changed:
                if not lane.results and not lane.done:
                    self._changed.wait()
                    continue
                if not lane.results:
                    break
                result = lane.results.popleft()
                self._changed.notify_all()
            yield result
        if lane.error is not None:
            raise lane.error
        with self._changed:
            del self._lanes[task]
            self._taken = task + 1
            self._changed.notify_all()
