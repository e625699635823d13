"""A case in a process of its own: bounded time and memory, and what came of it."""

import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.cases import Case, make_case
from videonsa.cli.main import EXIT_NO_OUTPUT, EXIT_USER, main

MOST_SECONDS = 60.0
"""Many times what a case takes on a machine that does something else too."""
MOST_MEGABYTES = 1500
_ROOM = 3 * 2**30
"""Addresses beside those that are taken when a case begins: what asks for more is stopped."""
_MOST_FILE = 2**29
_FUZZER = 99
"""Exit status where the fuzzer itself failed."""


@dataclass
class Outcome:
    """What came of a case."""

    number: int
    kind: str
    argv: list[str]
    done: list[str]
    streams: str
    environment: dict[str, str]
    status: int
    """Negative: the signal that ended it."""
    seconds: float
    processor_seconds: float
    megabytes: int
    """Peak, of the process and its own; the libraries take 300 to 400 of them."""
    out: str
    err: str
    problem: str = ""
    """Why this must not be; empty where it may."""


def run_case(seed: int, number: int, samples: Path, folder: Path) -> Outcome:
    """Run a case in `folder`, which is emptied first and left as the case left it."""
    _remove(folder)
    (folder / "files").mkdir(parents=True)
    begun = time.monotonic()
    process = os.fork()
    if process == 0:
        _be_the_case(seed, number, samples, folder)
    hangs = not _ends(process)
    if hangs:
        os.killpg(process, signal.SIGKILL)
    _, ended, usage = os.wait4(process, 0)
    _end_what_it_left(process)
    seconds = time.monotonic() - begun
    made = folder / "case.json"
    case = Case(**json.loads(made.read_bytes())) if made.exists() else Case("not made")
    outcome = Outcome(
        number,
        **asdict(case),
        status=os.waitstatus_to_exitcode(ended),
        seconds=round(seconds, 2),
        processor_seconds=round(usage.ru_utime + usage.ru_stime, 2),
        megabytes=usage.ru_maxrss // 1024,
        **{name: _text(folder / name) for name in ("out", "err")},
    )
    outcome.problem = f"hangs: {MOST_SECONDS:g} s" if hangs else _problem(outcome)
    return outcome


def _ends(process: int) -> bool:
    descriptor = os.pidfd_open(process)
    try:
        return bool(select.select([descriptor], [], [], MOST_SECONDS)[0])
    finally:
        os.close(descriptor)


def _end_what_it_left(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _be_the_case(seed: int, number: int, samples: Path, folder: Path) -> None:
    """Make the case, run it with streams of its own, and leave this process."""
    status = _FUZZER
    try:
        os.setsid()
        for descriptor, name in enumerate(("/dev/null", folder / "out", folder / "err")):
            opened = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        case = make_case(seed, number, samples, folder / "files")
        (folder / "case.json").write_text(json.dumps(asdict(case)))
        os.chdir(folder / "files")
        _bound()
        _arrange(case.streams)
        os.environ |= case.environment
        status = 1
        status = _status(case.argv)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _bound() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, used + _ROOM))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_FILE, _MOST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _arrange(streams: str) -> None:
    if streams == "stdout full":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1)
        os.close(full)
    elif streams:
        name = streams.split()[0]
        setattr(sys, name, None)
        os.close(("stdin", "stdout", "stderr").index(name))


def _status(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as left:  # --help
        return left.code if isinstance(left.code, int) else int(left.code is not None)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, AttributeError):
            continue


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


def _problem(outcome: Outcome) -> str:
    """Why an outcome must not be: the first of what is wrong with it."""
    lines = [line for line in re.split(r"[\r\n]", outcome.err) if line]
    said = bool(lines) and lines[-1].startswith("videonsa: error: ")
    good = (0, EXIT_USER, EXIT_NO_OUTPUT) if "stdout" in outcome.streams else (0, EXIT_USER)
    told = said or "--json" in outcome.argv or outcome.streams == "stderr closed"
    told = told or outcome.argv[:1] == ["doctor"]
    checked = outcome.argv[:2] == ["data", "check"] and " problems" in outcome.out
    wrong = {
        "the fuzzer failed": outcome.status == _FUZZER,
        f"ended by signal {-outcome.status}": outcome.status < 0,
        f"status {outcome.status}": outcome.status not in good,
        "a traceback": "Traceback (most recent" in outcome.err and "--debug" not in outcome.argv,
        f"{outcome.megabytes} MB": outcome.megabytes > MOST_MEGABYTES,
        "ran out of memory": "out of memory" in outcome.err,
        "status 2 without one line that says why": (
            outcome.status == EXIT_USER and not (told or checked)
        ),
    }
    return next((problem for problem, is_so in wrong.items() if is_so), "")


def _remove(folder: Path) -> None:
    if folder.exists():
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)
