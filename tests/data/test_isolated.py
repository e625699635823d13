import itertools
import os
import pickle
import signal
import time
from contextlib import suppress

import numpy as np
import pytest

from videonsa.data import isolated
from videonsa.data.isolated import CallFailed, IsolatedCaller
from videonsa.errors import DataError, VideoError


def double(array):
    return 2 * array, os.getpid()


def process_id():
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)


def read_to_the_end(path):
    with open(path, "rb") as file:
        return file.read()


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def refuse():
    raise VideoError("x.mp4: an empty file")


def stumble():
    raise ValueError("two\nlines")


def count(start, fails_at=None, closed=None):
    try:
        for number in itertools.count(start):
            if number == fails_at:
                raise VideoError("x.mp4: its end")
            yield np.full(3, number), os.getpid()
    finally:
        if closed is not None:
            closed.touch()


def count_to(last):
    yield from range(last)


def die_after(number):
    yield number
    die()


@pytest.fixture(scope="module")
def call():
    caller = IsolatedCaller(deadline=60.0)
    yield caller
    caller.close()


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_calls_share_one_other_process(call):
    result, process = call(double, np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(result, [[0, 2, 4], [6, 8, 10]])
    result += 1  # writable
    assert process != os.getpid()
    assert call(process_id) == process


def test_large_arrays_come_whole(call):
    frames = np.random.default_rng(0).integers(0, 256, (40, 3, 224, 224), dtype=np.uint8)
    np.testing.assert_array_equal(call(double, frames)[0], 2 * frames)


@pytest.mark.parametrize(
    ("function", "reason"),
    [(refuse, "x.mp4: an empty file"), (stumble, "ValueError: two lines")],
)
def test_an_error_is_told_and_the_process_goes_on(call, function, reason):
    process = call(process_id)
    with pytest.raises(CallFailed, match=f"^{reason}$") as failure:
        call(function)
    assert failure.value.kind == "broken"
    assert call(process_id) == process


def end_within_the_answer():
    for descriptor in range(3, 64):  # the pipe among them
        with suppress(OSError):
            os.write(descriptor, (100).to_bytes(4, "big") + b"half")
    os._exit(4)


@pytest.mark.parametrize(
    ("function", "ended"),
    [(die, "signal 11"), (leave, "exit status 3"), (end_within_the_answer, "exit status 4")],
)
def test_a_death_is_told_and_the_next_call_has_a_new_process(call, function, ended):
    process = call(process_id)
    with pytest.raises(CallFailed, match=ended) as failure:
        call(function)
    assert failure.value.kind == "dies"
    assert call(process_id) != process


def test_a_pipe_that_nobody_writes_to_ends_at_the_deadline(tmp_path):
    fifo = tmp_path / "video.mp4"
    os.mkfifo(fifo)
    call = IsolatedCaller(deadline=60.0)
    process = call(process_id)
    call.deadline = 0.2
    begun = time.monotonic()
    with pytest.raises(CallFailed, match=r"not read in 0\.2 s") as failure:
        call(read_to_the_end, str(fifo))
    assert time.monotonic() - begun < 10
    assert failure.value.kind == "hangs"
    assert not is_running(process)
    call.deadline = 60.0
    assert call(process_id) != process
    call.close()


def test_a_process_whose_caller_is_gone_ends_itself(monkeypatch):
    call = IsolatedCaller(deadline=30.0)
    process = call(process_id)
    child = call._running._process
    # As where the caller is killed: the pipe stays open elsewhere, nobody waits.
    call._running._connection.send_bytes(
        pickle.dumps((0.3 - isolated.GRACE_SECONDS, False, (sleep, (60,), {})))
    )
    assert child.wait(timeout=10) == -signal.SIGALRM
    assert not is_running(process)
    call.close()


def test_closing_ends_the_process(call):
    one = IsolatedCaller(deadline=30.0)
    process = one(process_id)
    one.close()
    assert not is_running(process)
    one.close()
    other = IsolatedCaller(deadline=30.0)
    process = other(process_id)
    del other
    assert not is_running(process)


def test_a_copy_has_its_own_process(call):
    copy = pickle.loads(pickle.dumps(call))
    assert copy.deadline == call.deadline
    assert copy(process_id) != call(process_id)
    copy.close()


def test_a_python_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(DataError, match="did not start"):
        IsolatedCaller(deadline=1.0)(process_id)


def test_a_stream_gives_what_the_generator_gives_and_calls_follow(call):
    assert list(call.stream(count_to, 3)) == [0, 1, 2]
    process = call(process_id)
    with pytest.raises(CallFailed, match="its end"):
        for array, of in call.stream(count, 5, fails_at=7):
            assert array.sum() in (15, 18) and of == process
    assert call(process_id) == process


def test_a_stream_that_is_closed_closes_its_generator_and_calls_follow(call, tmp_path):
    process = call(process_id)
    items = call.stream(count, 0, closed=tmp_path / "closed")
    assert next(items)[0].sum() == 0
    items.close()
    assert call(process_id) == process and (tmp_path / "closed").exists()


def test_a_stream_whose_process_ends_is_told_and_calls_follow():
    caller = IsolatedCaller(deadline=60.0)
    items = caller.stream(die_after, 1)
    assert next(items) == 1
    with pytest.raises(CallFailed, match="signal 11"):
        next(items)
    assert caller(process_id) > 0
    caller.close()
