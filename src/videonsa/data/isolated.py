"""Calls functions in a process of their own, so that the caller survives a hang or a crash.

A decoder may wait for ever for a file, and a damaged file may end the process that decodes it.
Neither can be handled inside the process itself, and a loader's worker may not start children of
multiprocessing: hence a plain subprocess.
"""

import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from videonsa.errors import DataError, VideoNSAError

START_SECONDS = 120.0
"""The process must start within this time; its imports take a few seconds."""
GRACE_SECONDS = 5.0
"""The process ends itself this long after a deadline, in case its caller is gone."""
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Kind = Literal["hangs", "dies", "broken"]
_NOTHING = pickle.dumps(None, protocol=5)
_STOP = b""
"""Ends a stream; of no effect where it has ended."""


class CallFailed(Exception):
    """A call in the other process gave no result."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind
        self.reason = reason


class _Answer(NamedTuple):
    """What comes back; `value` is pickled, its arrays follow, one message each."""

    error: str | None
    value: bytes = b""
    sizes: tuple[int, ...] = ()


class IsolatedCaller:
    """Calls functions in one other process, which is started when it is needed, and again.

    It may be sent to another process, and starts its own there.

    Args:
        deadline: seconds that a call may take.
    """

    def __init__(self, *, deadline: float) -> None:
        self.deadline = deadline
        self._running: _Process | None = None

    def __reduce__(self) -> tuple[Callable[[float], "IsolatedCaller"], tuple[float]]:
        return _caller, (self.deadline,)

    def __call__(
        self,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Call a function of a module, with arguments and a result that pickle.

        Raises:
            CallFailed: it took too long (`hangs`), its process ended (`dies`), or it raised an
                error (`broken`).
            DataError: the process did not start.
        """
        process = self._process(function.__module__)
        try:
            process.send((self.deadline, False, (function, args, kwargs)))
            result: Result = process.receive(self.deadline)
        except CallFailed as failure:
            if failure.kind != "broken":
                self.close()
            raise
        except BaseException:
            self.close()  # an answer that was not waited for would be taken for the next
            raise
        return result

    def stream(
        self,
        function: Callable[Arguments, Generator[Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Generator[Result]:
        """What a generator of a module gives, which is never None; it is an item ahead.

        Closing the stream closes the generator. Until then there is no other call.

        Raises:
            CallFailed: as for a call; the deadline is that of one item.
            DataError: the process did not start.
        """
        process = self._process(function.__module__)
        running = False
        try:
            process.send((self.deadline, True, (function, args, kwargs)))
            running = True
            while (item := process.receive(self.deadline)) is not None:
                yield item
            running = False
        except CallFailed as failure:
            running = failure.kind != "broken"  # then its generator has ended
            raise
        finally:
            if running and not process.stop():
                self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.end()
            self._running = None

    def _process(self, module: str) -> "_Process":
        # After a fork, the process belongs to the other side of it.
        if self._running is None or self._running.owner != os.getpid():
            self._running = _Process(module)
        return self._running


def _caller(deadline: float) -> IsolatedCaller:
    return IsolatedCaller(deadline=deadline)


class _Process:
    """The caller's side of one process."""

    def __init__(self, module: str) -> None:
        self.owner = os.getpid()
        self._connection, theirs = Pipe()
        # The module is imported now, for that may take longer than a call.
        main = f"from {__name__} import serve; import {module}; serve({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {main}"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the caller, which then ends this one
            )
        self.end = weakref.finalize(self, _end, self._process, self._connection, self.owner)
        started = False
        with suppress(EOFError, OSError):
            started = self._connection.poll(START_SECONDS) and self._connection.recv_bytes() == b""
        if not started:
            self.end()
            raise DataError(
                "the process that reads videos did not start (what it says of that is above): "
                "want a Python that can import videonsa and room for one more process a worker"
            )

    def send(self, request: Any) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(request))
        except OSError as error:
            raise self._died() from error

    def receive(self, deadline: float) -> Any:
        try:
            if not self._connection.poll(deadline):
                raise CallFailed("hangs", f"not read in {deadline:g} s")
            answer: _Answer = pickle.loads(self._connection.recv_bytes())
            arrays = [bytearray(size) for size in answer.sizes]
            for array in arrays:
                self._connection.recv_bytes_into(array)
        except (EOFError, OSError) as error:  # OSError: it ended in the middle of an answer
            raise self._died() from error
        if answer.error is not None:
            raise CallFailed("broken", answer.error)
        return pickle.loads(answer.value, buffers=arrays)

    def stop(self) -> bool:
        """End the stream that runs. Returns whether it ended, so that calls may follow."""
        try:
            self._connection.send_bytes(_STOP)
            while self.receive(GRACE_SECONDS) is not None:
                pass
        except CallFailed as failure:
            return failure.kind == "broken"
        except OSError:
            return False
        return True

    def _died(self) -> CallFailed:
        return CallFailed("dies", f"its reader ended: {self._how_it_ended()}")

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=GRACE_SECONDS)
            if code < 0:
                return f"signal {-code} ({signal.strsignal(-code)})"
            return f"exit status {code}"
        return "it closed its pipe"


def _end(process: "subprocess.Popen[bytes]", connection: Connection, owner: int) -> None:
    connection.close()
    if os.getpid() != owner:
        return
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # where the system does not let go of it
        process.wait(timeout=GRACE_SECONDS)


def serve(descriptor: int) -> None:
    """The process's side: answer calls until the other side is gone."""
    with Connection(descriptor) as connection, suppress(EOFError, OSError):
        connection.send_bytes(b"")
        while True:
            if not (message := connection.recv_bytes()):
                continue
            deadline, streams, (function, args, kwargs) = pickle.loads(message)
            if streams:
                _serve_stream(connection, deadline, function(*args, **kwargs))
                continue
            with _ends_itself(deadline):
                _send(connection, *_answer(function, args, kwargs))


def _serve_stream(connection: Connection, deadline: float, items: Generator[Any]) -> None:
    """Send item after item, then None; or an error, which ends it as well."""
    with closing(items):
        while not connection.poll():
            with _ends_itself(deadline):
                answer, arrays = _answer(next, (items, None), {})
            _send(connection, answer, arrays)  # which waits for whoever takes it, however long
            if answer.error is not None or answer.value == _NOTHING:
                return
    _send(connection, _Answer(None, _NOTHING), [])


@contextmanager
def _ends_itself(deadline: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, deadline + GRACE_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def _send(connection: Connection, answer: _Answer, arrays: list[memoryview]) -> None:
    connection.send_bytes(pickle.dumps(answer))
    for array in arrays:
        connection.send_bytes(array)


def _answer(
    function: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[_Answer, list[memoryview]]:
    buffers: list[pickle.PickleBuffer] = []
    try:
        value = function(*args, **kwargs)
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except VideoNSAError as error:
        return _Answer(str(error)), []
    except Exception as error:  # whatever a damaged file makes a decoder raise
        return _Answer(" ".join(f"{type(error).__name__}: {error}".split())), []
    arrays = [buffer.raw() for buffer in buffers]
    return _Answer(None, pickled, tuple(array.nbytes for array in arrays)), arrays
