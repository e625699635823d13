"""Timing in rounds: what is timed, order, counts, errors."""

import json
import threading
import time

import pytest
import torch

from videonsa.bench import measure as measure_module
from videonsa.bench.measure import (
    CudaWatch,
    HostWatch,
    Measurement,
    Task,
    measure_in_turn,
    one_line,
    storage_bytes,
    watch_of,
)

CPU_WATCH = HostWatch()


class ScriptedWatch(HostWatch):
    """Takes the time that a task's outcome says, in ms; knows what memory it needs."""

    def __init__(self):
        self.freed = 0

    def warm(self, task):
        task.whole()
        return 1000

    def round(self, tasks):
        for task, found in tasks:
            try:
                found.times_ms.append(float(task.start()()[0]))
            except Exception as error:
                found.fail(error)

    def free(self):
        self.freed += 1


def task_of(call):
    """All of it timed, nothing before."""
    return Task(call, lambda: call)


def recording(log, name, *, milliseconds=1.0):
    def call():
        log.append(name)
        return (torch.tensor(milliseconds),)

    return task_of(call)


def test_rounds_run_every_task_once_and_alternate_the_order():
    log = []
    tasks = {name: recording(log, name) for name in "abc"}
    found = measure_in_turn(tasks, watch=ScriptedWatch(), repeats=3)
    assert "".join(log) == "abc" + "abc" + "cba" + "abc"
    assert all(x.times_ms == [1.0] * 3 for x in found.values())


def test_a_task_that_takes_long_to_warm_is_told_while_it_does_and_after(monkeypatch):
    monkeypatch.setattr(measure_module, "LONG_SECONDS", 0.0)
    lines, told = [], threading.Event()

    def progress(line):
        lines.append(line)
        told.set()

    def slow():
        assert told.wait(10)  # until the line is there
        return (torch.tensor(1.0),)

    measure_in_turn({"a": task_of(slow)}, watch=ScriptedWatch(), repeats=1, progress=progress)
    assert lines == ["a: still warming up", "a: warm after 0 s"]


def test_a_task_that_is_soon_warm_is_not_told():
    lines = []
    tasks = {"a": recording([], "a")}
    measure_in_turn(tasks, watch=ScriptedWatch(), repeats=1, progress=lines.append)
    assert lines == []


def test_a_slow_task_stops_after_its_seconds_but_not_before_three_runs():
    log = []
    tasks = {
        "fast": recording(log, "fast", milliseconds=0.1),
        "slow": recording(log, "slow", milliseconds=400.0),
        "slower": recording(log, "slower", milliseconds=9000.0),
    }
    found = measure_in_turn(tasks, watch=ScriptedWatch(), repeats=10, seconds=2.0)
    runs = {name: len(x.times_ms) for name, x in found.items()}
    assert runs == {"fast": 10, "slow": 5, "slower": 3}


def failing(error, *, after):
    runs = []

    def call():
        runs.append(None)
        if len(runs) > after:
            raise error
        return (torch.tensor(1.0),)

    return task_of(call)


@pytest.mark.parametrize("after", [0, 2], ids=["while warming", "in a round"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of\n memory"), "out of memory"),
        (ValueError("wrong size"), "refused"),
        (RuntimeError("no kernel"), "failed"),
        (ModuleNotFoundError("No module named 'x'"), "not installed"),
    ],
)
def test_a_task_that_raises_has_its_line_and_the_others_go_on(error, status, after):
    watch = ScriptedWatch()
    tasks = {"bad": failing(error, after=after), "good": failing(error, after=99)}
    found = measure_in_turn(tasks, watch=watch, repeats=4)
    assert found["bad"].status == status
    assert found["bad"].error == one_line(error)
    assert found["bad"].times_ms == []
    assert found["bad"].extra_bytes is None
    assert len(found["good"].times_ms) == 4
    assert watch.freed == 1


def test_the_host_watch_times_tasks_and_records_errors():
    good = task_of(lambda: (torch.ones(1),))
    tasks = {"good": good, "bad": failing(RuntimeError("broken"), after=1)}
    found = measure_in_turn(tasks, watch=CPU_WATCH, repeats=3)
    assert len(found["good"].times_ms) == 3
    assert all(x > 0 for x in found["good"].times_ms)
    assert found["good"].extra_bytes is None
    assert found["bad"].error == "RuntimeError: broken"


def test_what_a_task_runs_before_is_not_timed(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def start():
        time.perf_counter()
        return lambda: (torch.ones(1),)

    found = measure_in_turn({"a": Task(lambda: (), start)}, watch=CPU_WATCH, repeats=2)
    assert found["a"].times_ms == [1000.0, 1000.0]


def test_shared_storage_counts_once():
    x = torch.zeros(10, dtype=torch.float32)
    assert storage_bytes([x, x[2:4], torch.zeros(3, dtype=torch.int8)]) == 43


def test_a_measurement_gives_median_spread_and_all_values():
    found = Measurement(times_ms=[3.0, 1.0, 2.0, 10.0], host_ms=[0.1, 0.3, 0.2], extra_bytes=2**30)
    result = found.to_dict()
    assert (result["ms"], result["ms_min"], result["ms_max"]) == (2.5, 1.0, 10.0)
    assert result["times_ms"] == [3.0, 1.0, 2.0, 10.0]
    assert result["host_ms"] == 0.2
    assert result["extra_gb"] == pytest.approx(1.073741824)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_measurement_without_a_run_has_no_number():
    found = Measurement()
    found.fail(RuntimeError("broken"))
    result = found.to_dict()
    names = ("ms", "ms_min", "ms_max", "host_ms", "extra_gb")
    assert all(result[name] is None for name in names)
    assert result["status"] == "failed"


def test_a_long_error_is_cut():
    line = one_line(RuntimeError("x" * 1000))
    assert len(line) == 300
    assert line.endswith("...")


@pytest.mark.gpu
def test_a_gpu_gives_event_times_and_memory_beyond_inputs_and_output():
    device = torch.device("cuda")
    x = torch.ones(2**20, device=device)

    def call():
        twice = torch.cat([x, x])  # 8 MiB beside the output of 4
        return (twice[: 2**20] + 1,)

    def too_large():
        return (torch.empty(2**50, dtype=torch.int8, device=device),)

    tasks = {"call": task_of(call), "large": task_of(too_large)}
    found = measure_in_turn(tasks, watch=CudaWatch(device), repeats=5)
    assert found["call"].extra_bytes == 2**23
    assert len(found["call"].times_ms) == len(found["call"].host_ms) == 5
    assert all(0 < milliseconds < 1000 for milliseconds in found["call"].times_ms)
    assert found["large"].status == "out of memory"
    assert found["large"].times_ms == []


def test_a_cpu_has_the_watch_of_the_host():
    assert isinstance(watch_of(torch.device("cpu")), HostWatch)
