"""What probing found, remembered in a file that only grows: a build that was killed goes on."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from videonsa.data.reasons import DropError, Reason
from videonsa.errors import UsageError
from videonsa.video.sampling import VideoInfo

JOURNAL = "probe.jsonl"
_HEADER = {"videonsa": "probe journal", "version": 1}


class FileState(NamedTuple):
    """A file, or several that are one video, as they are now: if this is the same, so are they."""

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


class Journal:
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
        if path.exists():
            for state, probed in self._read():
                self._known[state] = probed

    def __contains__(self, state: FileState) -> bool:
        return state in self._known

    def __getitem__(self, state: FileState) -> Probed:
        return self._known[state]

    def __enter__(self) -> Self:
        self._file: BinaryIO = self._path.open("ab")
        self._file.truncate(self._whole)
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

    def _read(self) -> Iterator[tuple[FileState, Probed]]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    return
                try:
                    content = json.loads(line)
                    if number > 0:
                        yield _entry(content)
                    elif content != _HEADER:
                        raise ValueError("another header")
                except (ValueError, TypeError, KeyError) as error:
                    raise UsageError(
                        f"{self._path}: line {number + 1} is not of a journal of this version "
                        f"({error}): delete the file to probe all videos again"
                    ) from error
                self._whole += len(line)


def _entry(content: dict[str, Any]) -> tuple[FileState, Probed]:
    state = FileState(*content["file"])
    if "info" in content:
        return state, VideoInfo(**content["info"])
    failure = content["failure"]
    return state, ProbeFailure(Reason(failure["reason"]), failure["detail"])
