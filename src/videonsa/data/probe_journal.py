"""Keeps what probing found in a file that is only appended to, so that a build can resume."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from videonsa.data.files import json_lines, open_for_lines
from videonsa.data.reasons import DropError, Reason
from videonsa.parsing import typed
from videonsa.video.sampling import VideoInfo

JOURNAL = "probe.jsonl"
_HEADER = {"videonsa": "probe journal", "version": 2}
"""Its version is that of what probing makes of a file, too: what it means, and which it takes."""
_REMEDY = "delete the file to probe all videos again"


class FileState(NamedTuple):
    """The state of a file, or of several that are one video: if it is equal, they are unchanged."""

    key: str
    """The path; of a list of frames, one that stands for all of them."""
    size: int
    """Bytes, of all together."""
    mtime_ns: int
    """Of the last change, the latest of all."""


@dataclass(frozen=True, slots=True)
class ProbeFailure:
    """Why a file cannot be used."""

    reason: Reason
    detail: str

    def to_error(self) -> DropError:
        """What to raise where the file was wanted."""
        return DropError(self.reason, self.detail)


Probed = VideoInfo | ProbeFailure
_STATE = tuple[str, int, int]
_KINDS = {"info": VideoInfo, "failure": ProbeFailure}


class ProbeJournal:
    """Results of probing, in memory and in a file; a line that was cut off is probed again."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            UsageError: another file is there.

        """
        self._path = path
        self._known: dict[FileState, Probed] = {}
        self._whole = 0
        """Bytes up to the end of the last whole line."""
        self.notes: tuple[str, ...] = ()
        """What was not taken over from the file."""
        if path.exists():
            try:
                self._read()
            except _OtherVersion:
                self._known, self._whole = {}, 0
                self.notes = (f"{path} is of another version: all files are probed again",)

    def __contains__(self, state: FileState) -> bool:
        return state in self._known

    def __getitem__(self, state: FileState) -> Probed:
        return self._known[state]

    def __enter__(self) -> Self:
        self._file: BinaryIO = open_for_lines(self._path, after=self._whole, remedy=_REMEDY)
        if self._whole == 0:
            self._append(_HEADER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, state: FileState, probed: Probed) -> None:
        """Remember a result; it is in the file when this returns."""
        failed = isinstance(probed, ProbeFailure)
        self._append({"file": list(state), "failure" if failed else "info": asdict(probed)})
        self._known[state] = probed

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _read(self) -> None:
        for entry, end in json_lines(self._path, read=_entry, remedy=_REMEDY):
            self._known |= entry
            self._whole = end


class _OtherVersion(Exception):
    """A journal of ours whose lines mean something else."""


def _entry(number: int, content: dict[str, Any]) -> dict[FileState, Probed]:
    if number > 1:
        state, (kind, found) = typed(_STATE, content["file"]), content.popitem()
        return {FileState(*state): typed(_KINDS[kind], found)}
    if content == _HEADER:
        return {}
    if isinstance(content, dict) and content | {"version": _HEADER["version"]} == _HEADER:
        raise _OtherVersion
    raise ValueError("another header")
