"""`samples.jsonl`: a line a question, written as it is answered, and `run.json` beside it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from videonsa.errors import UsageError
from videonsa.evals.suite.config import SuiteRun

SAMPLES, RUN = "samples.jsonl", "run.json"


class Key(NamedTuple):
    """What a line is about; a folder has one line a key."""

    length: int
    sample: int
    condition: str
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One question, its answer and what it took: all that the report is made from."""

    length: int
    """Tokens asked for; `video_tokens` are those there were."""
    sample: int
    seed: int
    condition: str
    kind: str
    position: float | None
    """Where the evidence lies, 0 to 1; None where it is strewn over more than half of the video."""
    evidence: list[list[float]]
    """Seconds [start, end) of each place."""
    question: str
    options: list[str]
    answer: str
    oracle: str
    reply: str
    chosen: str | None
    right: bool
    video_tokens: int
    prompt_tokens: int
    attended_keys: int | None
    attention_fraction: float | None
    encode_seconds: float | None
    prefill_seconds: float | None
    answer_seconds: float | None
    peak_bytes: int | None
    model: str
    attention: str
    spec: dict[str, Any] | None
    """Of the model's attention, knock-outs included; None with dense attention."""
    difficulty: str
    frame_size: int
    style: str
    split: str

    @property
    def key(self) -> Key:
        """What the line is about."""
        return Key(self.length, self.sample, self.condition, self.kind)


_NAMES = {field.name for field in fields(Line)}


def read_lines(folder: Path) -> list[Line]:
    """All lines in order of their keys. A last line that was cut off is left out.

    Raises:
        UsageError: no such file, or one that holds something else.
    """
    path = folder / SAMPLES
    if not path.is_file():
        raise UsageError(
            f"{path} is not there: run 'videonsa eval synthetic' with this --out first"
        )
    lines: dict[Key, Line] = {}
    for number, text in enumerate(_whole(path.read_bytes()).splitlines(), 1):
        line = _parsed(text)
        if line is None:
            raise UsageError(
                f"{path}, line {number} is no line of this suite: name another folder, or delete "
                "that line to have its question asked again"
            )
        lines.setdefault(line.key, line)
    return [lines[key] for key in sorted(lines)]


def _whole(content: bytes) -> bytes:
    """Up to the last line break: what a run that was killed wrote completely."""
    return content[: content.rfind(b"\n") + 1]


def _parsed(text: bytes) -> Line | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return Line(**values) if isinstance(values, dict) and set(values) == _NAMES else None


@contextmanager
def appending(folder: Path) -> Iterator["Journal"]:
    """Go on with `samples.jsonl`, a cut-off last line removed; make it where there is none."""
    path = folder / SAMPLES
    known: list[Line] = []
    if path.is_file():
        content = path.read_bytes()
        whole = len(_whole(content))
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
        known = read_lines(folder)
    with path.open("a", encoding="utf-8") as file:
        yield Journal(file, known)


class Journal:
    """The lines so far, and a place for more."""

    def __init__(self, file: TextIO, lines: list[Line]) -> None:
        self._file = file
        self.lines = {line.key: line for line in lines}

    def append(self, line: Line) -> None:
        """Write a line at once, so that it outlives this process."""
        self._file.write(json.dumps(asdict(line), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self.lines[line.key] = line


def read_run(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says; None where there is none.

    Raises:
        UsageError: one that cannot be read.
    """
    path = folder / RUN
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        return {"config": dict(found["config"]), **found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: name another folder with --out") from error


def check_same_run(folder: Path, run: SuiteRun) -> None:
    """Refuse to go on in a folder that holds answers of another run.

    Raises:
        UsageError: naming the first option that differs.
    """
    before = read_run(folder)
    if before is None:
        if (folder / SAMPLES).exists():
            raise UsageError(
                f"{folder} holds {SAMPLES} without {RUN}: name another folder with --out"
            )
        return
    for name, now in run.identity().items():
        was = before["config"].get(name)
        if was != now:
            raise UsageError(
                f"{folder} holds a run with {name}={was!r}, not {now!r}: name another folder with "
                "--out, or give the options of that run"
            )
