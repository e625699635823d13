import math
import threading
import time

import pytest

from benchmarks.study import parallel_jobs
from benchmarks.study.parallel_jobs import Clock, Job, call_apart, run_jobs
from benchmarks.study.study_design import STAGES


class Work:
    """Jobs whose command is their name; a call notes how many run with it and on which slot."""

    def __init__(self, *names, failing=(), stopping=()):
        self.done, self.running, self.most, self.slots = set(), 0, 0, []
        self.failing, self.stopping = failing, stopping
        self.lock = threading.Lock()
        self.names = names

    def jobs(self, tmp_path):
        return [
            Job(
                name=name,
                command=lambda seconds, name=name: [name, str(seconds)],
                log=tmp_path / name,
                is_done=lambda name=name: name in self.done,
            )
            for name in self.names
        ]

    def call(self, arguments, log, seconds, slot):
        name = arguments[0]
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.slots.append(slot)
        time.sleep(0.02)
        with self.lock:
            self.running -= 1
        if name in self.failing:
            return 1
        if name not in self.stopping:
            self.done.add(name)
        return 0


def test_so_many_run_at_once_each_in_a_slot_of_its_own(tmp_path):
    work = Work(*"abcdef")
    ended = run_jobs(work.jobs(tmp_path), at_once=2, clock=Clock(), call=work.call)
    assert set(ended.values()) == {"done"} and list(ended) == list("abcdef")
    assert work.most == 2 and set(work.slots) == {0, 1}


def test_one_that_fails_leaves_the_others_and_what_stopped_early_is_left(tmp_path):
    work = Work(*"abc", failing="a", stopping="b")
    ended = run_jobs(work.jobs(tmp_path), at_once=1, clock=Clock(), call=work.call)
    assert ended == {"a": "failed", "b": "left", "c": "done"}


def test_the_end_of_a_failed_log_is_told_and_now_and_then_what_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_jobs, "TOLD_EVERY", 0.005)
    work, told = Work("a", failing="a"), []
    bar = "step: 1%\rstep: 2%\r"
    (tmp_path / "a").write_bytes("\n".join([*map(str, range(60)), "Traceback", bar]).encode())
    run_jobs(work.jobs(tmp_path), at_once=1, clock=Clock(), call=work.call, tell=told.append)
    *now_and_then, end = told
    assert set(now_and_then) == {"a: step: 2%"}
    assert end.splitlines() == ["a failed:", *map(str, range(22, 60)), "Traceback", "step: 2%"]


def test_what_is_done_is_not_called_again(tmp_path):
    work = Work("a")
    work.done.add("a")
    ended = run_jobs(work.jobs(tmp_path), at_once=1, clock=Clock(), call=work.call)
    assert ended == {"a": "done"} and work.slots == []


def test_nothing_starts_shortly_before_the_end(tmp_path):
    work = Work("a")
    ended = run_jobs(work.jobs(tmp_path), at_once=1, clock=Clock.of(5.0), call=work.call)
    assert ended == {"a": "left"} and work.slots == []


def test_a_command_that_is_late_is_killed(tmp_path):
    begun = time.monotonic()
    assert call_apart(["doctor"], tmp_path / "logs" / "late.log", 0.05, 0) != 0
    assert time.monotonic() - begun < 20


@pytest.mark.slow
def test_a_command_writes_its_log(tmp_path):
    log = tmp_path / "logs" / "list.log"
    assert call_apart(["train", STAGES[-1].recipe_file, "--show"], log, math.inf, 0) == 0
    assert "num_selected_blocks: 8" in log.read_text()
