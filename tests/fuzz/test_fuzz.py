"""Hostile input ends as it may; and the fuzzer sees what may not be."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTED = """
import os, sys, time
from pathlib import Path
from tests.fuzz import sandbox
from tests.fuzz.cases import Case
from videonsa.cli.common import report

def memory(argv):
    return len(bytearray(1600 * 2**20)) * 0

def commits(argv):
    return sum(bytearray(8 * 2**30)[::2**20])

def fails(argv):
    raise KeyError("lost")

def defect(argv):
    report("videonsa: error: unexpected KeyError: this is a defect")
    return 1

def silent(argv):
    return 2

def told(argv):
    report("videonsa: error: no such file")
    return 2

sandbox.make_case = lambda *_: Case("planted", ["plan"])
sandbox.MOST_SECONDS = 10.0
for planted in (memory, commits, fails, defect, silent, told):
    sandbox.main = planted
    print(sandbox.run_case(0, 0, Path(), Path(sys.argv[1])).problem)
sandbox.MOST_SECONDS = 0.2
for planted in (lambda _: time.sleep(60), lambda _: os.abort()):
    sandbox.main = planted
    print(sandbox.run_case(0, 0, Path(), Path(sys.argv[1])).problem)
"""


def test_the_sandbox_tells_what_may_not_be(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PLANTED, str(tmp_path / "case")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    memory, more, *rest, hang, aborted = done.stdout.splitlines() or [done.stderr]
    assert memory.endswith(" MB")
    assert (more, hang, aborted) == ("status 1", "hangs: 0.2 s", "ended by signal 6")
    assert rest == ["status 1", "status 1", "status 2 without one line that says why", ""]


@pytest.mark.slow
def test_150_hostile_cases_end_with_one_line_in_bounded_time_and_memory() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "150", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
