"""The folder in which a server keeps uploads, and for a moment what requests bring with them."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from videonsa.disk import sole_writer
from videonsa.errors import UsageError
from videonsa.parsing import one_line


class StateFolder(NamedTuple):
    """Where files lie while a server runs."""

    requests: Path
    """What requests bring with them, a folder each, until they are answered."""
    files: Path
    """Uploads."""
    sessions: Path
    """Those that are kept on disk."""


@contextmanager
def open_state(folder: Path | None) -> Iterator[StateFolder]:
    """A folder for one server.

    Args:
        folder: made where it is not there, and kept; None: one of its own, removed at the end.

    Raises:
        UsageError: it cannot be written to, or another server holds it.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="videonsa-") as name:
            yield _parts_of(Path(name))
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--state {folder}: {one_line(error)}: name another folder") from error
    with sole_writer(folder, work="serve"):
        yield _parts_of(folder)


def _parts_of(folder: Path) -> StateFolder:
    state = StateFolder(*(folder / name for name in ("requests", "files", "sessions")))
    for left in (state.requests, state.sessions):  # of a server that was killed
        shutil.rmtree(left, ignore_errors=True)
    for part in state:
        part.mkdir(mode=0o700, exist_ok=True)
    return state
