import math
import threading
import time

import pytest

from benchmarks.study import parallel_jobs
from benchmarks.study.parallel_jobs import Clock, Job, call_apart, run_jobs


class Work:
    """Jobs whose command is their name; a call notes what runs with it, and on which GPU."""

    def __init__(self, *names, failing=(), stopping=(), shares=1.0, together=1):
        self.done, self.running, self.most, self.calls = set(), 0, 0, []
        self.failing, self.stopping, self.shares = failing, stopping, shares
        self.changed = threading.Condition()
        self.names, self.together = names, together

    def jobs(self, tmp_path, after=None, least=0.0):
        return [
            Job(
                name=name,
                command=lambda seconds, name=name: [name, str(seconds)],
                log=tmp_path / name,
                is_done=lambda name=name: name in self.done,
                after=tuple((after or {}).get(name, ())),
                share=self.shares,
                least_seconds=least,
            )
            for name in self.names
        ]

    def call(self, arguments, log, seconds, gpu):
        name = arguments[0]
        with self.changed:
            self.running += 1
            self.most = max(self.most, self.running)
            self.calls.append((name, gpu))
            self.changed.notify_all()
            # Until as many have run together as are wanted, so that a busy machine changes nothing.
            assert self.changed.wait_for(lambda: self.most >= self.together, timeout=20)
        time.sleep(0.02)  # in which one more than wanted would start
        with self.changed:
            self.running -= 1
        if name in self.failing:
            return 1
        if name not in self.stopping:
            self.done.add(name)
        return 0

    def run(self, tmp_path, *, at_once=9, clock=None, **options):
        jobs = self.jobs(tmp_path, **options)
        return run_jobs(jobs, at_once=at_once, clock=clock or Clock(), call=self.call)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(parallel_jobs, "gpus", lambda: ["2", "5"])


@pytest.mark.parametrize(("share", "most"), [(1.0, 2), (0.5, 4), (0.0, 6)])
def test_gpus_are_shared_out(tmp_path, two_gpus, share, most):
    work = Work(*"abcdef", shares=share, together=most)
    assert set(work.run(tmp_path).values()) == {"done"}
    assert work.most == most
    if share:
        half = most // 2
        assert sorted(gpu for _, gpu in work.calls[:most]) == ["2"] * half + ["5"] * half


def test_no_more_run_at_once_than_are_allowed(tmp_path, two_gpus):
    work = Work(*"abcd", shares=0.0)
    work.run(tmp_path, at_once=1)
    assert work.most == 1 and [name for name, _ in work.calls] == list("abcd")


def test_a_job_waits_for_those_it_needs_and_others_pass_it(tmp_path, two_gpus):
    work = Work(*"abcd")
    work.run(tmp_path, after={"b": "a", "c": "b"})
    names = [name for name, _ in work.calls]
    assert set(names[:2]) == {"a", "d"} and names[2:] == ["b", "c"]


def test_one_that_fails_leaves_those_that_need_it_and_no_others(tmp_path):
    work = Work(*"abcd", failing="a", stopping="c")
    ended = work.run(tmp_path, after={"b": "a", "d": "c"})
    assert ended == {"a": "failed", "b": "left", "c": "left", "d": "left"}
    assert [name for name, _ in work.calls] == ["a", "c"]


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
    assert work.run(tmp_path) == {"a": "done"} and work.calls == []


def test_nothing_starts_shortly_before_the_end(tmp_path):
    work = Work("a")
    assert work.run(tmp_path, least=10.0, clock=Clock.of(5.0)) == {"a": "left"}
    assert work.calls == []


def test_what_a_call_raises_ends_the_study(tmp_path):
    work = Work("a")
    jobs = work.jobs(tmp_path)

    def call(*_):
        raise OSError("no process")

    with pytest.raises(OSError, match="no process"):
        run_jobs(jobs, at_once=1, clock=Clock(), call=call)


def test_a_command_that_is_late_is_killed(tmp_path):
    begun = time.monotonic()
    assert call_apart(["timeit", "-n1", "import time; time.sleep(60)"], tmp_path / "a", 0.3, None)
    assert time.monotonic() - begun < 20


def test_a_command_writes_its_log(tmp_path):
    log = tmp_path / "logs" / "list.log"
    assert call_apart(["json.tool", "--help"], log, math.inf, None) == 0
    assert "usage" in log.read_text()
