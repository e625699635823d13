"""Triton's hooks count what is compiled, and kernels compile ahead of their use."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videonsa.ops import compilation
from videonsa.ops.compilation import Compilation, Compiled, watch_compilation

SCRIPT = Path(__file__).parent / "triton/compiling_ahead.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Told by a process of its own: kernels of this one may be interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def test_a_kernel_is_counted_when_it_is_compiled_and_not_when_it_is_found(found):
    assert found["first"] == 1
    assert found["same process"] == 1
    assert found["next process"] == 1, "it was on the disk"
    assert found["notices"] == [1]
    assert 0 < found["seconds"] < 60


def test_the_hook_is_there_inside_only_and_others_are_told_too(found):
    assert found["restored"]
    assert found["outside"] == 1
    assert found["others"][:3] == [False, True, False]


def test_kernels_compile_side_by_side_and_are_then_ready(found):
    assert found["together"] == ["done", 1], "one of the two was on the disk"
    assert found["afterwards"] == 1


def test_a_kernel_that_does_not_compile_leaves_nothing_behind(found):
    assert found["after one that does not compile"] == "done"


def test_without_a_gpu_nothing_is_watched(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with watch_compilation() as watch:
        pass
    assert watch.compiled.count == 0


def compiled(count, seconds):
    return Compiled(count=count, seconds=seconds)


def test_time_counts_from_the_beginning_of_the_first_kernel():
    times = iter([100.5, 103.0, 103.0])
    found = []
    watch = Compilation(found.append, lambda: next(times))
    for seconds in (0.5, 9.0, 0.1):  # several at a time: a later one may have begun earlier
        watch.ended(seconds)
    assert found == [compiled(1, 0.5), compiled(2, 3.0), compiled(3, 3.0)]
    assert watch.compiled == found[-1]


class Timer:
    """In place of `threading.Timer`; `fire` lets its time be over."""

    last = None

    def __init__(self, seconds, call):
        self.seconds, self.call, self.is_cancelled = seconds, call, False
        Timer.last = self

    def start(self):
        pass

    def cancel(self):
        self.is_cancelled = True

    def fire(self):
        self.call()


@pytest.fixture
def watched(monkeypatch):
    """A watch with a clock in `now[0]`, and its notices."""
    Timer.last = None
    monkeypatch.setattr(compilation.threading, "Timer", Timer)
    now, notices = [100.0], []
    return Compilation(notices.append, lambda: now[0]), now, notices


def test_it_is_told_within_a_second_that_the_first_kernel_is_begun(watched):
    watch, now, notices = watched
    watch.begun("a")
    assert Timer.last.seconds == compilation.PATIENCE < 1
    now[0] = 100.75
    Timer.last.fire()
    assert notices == [compiled(0, 0.75)]
    now[0] = 103.0
    watch.ended(2.9)
    assert notices[1:] == [compiled(1, 3.0)]


def test_kernels_on_the_disk_are_not_told_of(watched):
    watch, now, notices = watched
    for kernel in "abab":  # asked for again before it is there: of one that is compiled already
        watch.begun(kernel)
    now[0] = 100.3
    watch.ended(None)
    now[0] = 100.4
    Timer.last.fire()
    assert not notices, "one of them was there a moment ago"
    assert Timer.last.seconds == pytest.approx(0.4)
    watch.ended(None)
    now[0] = 100.9
    Timer.last.fire()
    assert not notices
    watch.begun("c")
    now[0] = 101.5
    Timer.last.fire()
    assert notices == [compiled(0, pytest.approx(0.6))]


def test_after_the_end_nothing_is_told(watched):
    watch, now, notices = watched
    watch.begun("a")
    watch.close()
    assert Timer.last.is_cancelled
    now[0] = 101.0
    Timer.last.fire()
    watch.ended(0.9)
    assert not notices


def test_a_timer_tells_it_while_the_kernel_compiles(monkeypatch):
    monkeypatch.setattr(compilation, "PATIENCE", 0.01)
    notices = []
    watch = Compilation(notices.append, time.perf_counter)
    watch.begun("a")
    deadline = time.perf_counter() + 10
    while not notices and time.perf_counter() < deadline:
        time.sleep(0.01)
    watch.close()
    assert [x.count for x in notices] == [0]
