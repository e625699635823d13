"""`samples.jsonl`: a line a question, written as it is answered, and `run.json` beside it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from videonsa.data.files import json_lines, open_for_lines
from videonsa.errors import UsageError
from videonsa.evals.tasks.suite.config import CONDITIONS, SuiteRun
from videonsa.parsing import one_line, read_json_object, typed
from videonsa.rendered.suite import KINDS

SAMPLES, RUN = "samples.jsonl", "run.json"
_REMEDY = (
    "name another folder, or delete the file, or the line, to have what it answers asked again"
)
_SPEC = {"block_size", "num_selected_blocks", "window_size", "branches", "compressed_mask"}
"""What a line says of the attention, at least."""


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


def read_lines(folder: Path) -> list[Line]:
    """All lines in order of their keys. A last line that was cut off is left out.

    Raises:
        UsageError: no such file, or one that holds something else.
    """
    path = folder / SAMPLES
    if not path.exists():
        raise UsageError(
            f"{path} is not there: run 'videonsa eval synthetic' with this --out first"
        )
    lines = _read(path)[0]
    return [lines[key] for key in sorted(lines)]


def _read(path: Path) -> tuple[dict[Key, Line], int]:
    """Lines by their keys, the first of each, and the bytes of whole lines."""
    lines: dict[Key, Line] = {}
    whole = 0
    for line, end in json_lines(path, read=_line, remedy=_REMEDY):
        lines.setdefault(line.key, line)
        whole = end
    return lines, whole


def _line(_: int, content: Any) -> Line:
    line: Line = typed(Line, content)
    unknown = line.condition not in CONDITIONS or line.kind not in KINDS
    lacking = set() if line.spec is None else _SPEC - line.spec.keys()
    if unknown or lacking or line.answer not in line.options:
        raise ValueError("it is no line of this suite")
    return line


@contextmanager
def appending(folder: Path) -> Iterator["Journal"]:
    """Go on with `samples.jsonl`, a cut-off last line removed; make it where there is none."""
    path = folder / SAMPLES
    known, whole = _read(path) if path.exists() else ({}, 0)
    with open_for_lines(path, after=whole, remedy=_REMEDY) as file:
        yield Journal(file, known)


class Journal:
    """The lines so far, and a place for more."""

    def __init__(self, file: BinaryIO, lines: dict[Key, Line]) -> None:
        self._file = file
        self.lines = lines

    def append(self, line: Line) -> None:
        """Write a line at once, so that it outlives this process."""
        text = json.dumps(asdict(line), ensure_ascii=False, allow_nan=False)
        self._file.write(text.encode() + b"\n")
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
    found = read_json_object(path, remedy="name another folder with --out")
    try:
        _ = typed(dict[str, Any], found["config"]), typed(float, found.get("seconds", 0.0))
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{path} is of no run ({one_line(error)}): name another folder with --out"
        ) from error
    return found


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
