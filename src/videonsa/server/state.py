"""The folder in which a server keeps uploads, and for a moment what requests bring with them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from videonsa.disk import LOCK, sole_writer
from videonsa.errors import UsageError
from videonsa.parsing import one_line

SHARED_MEMORY = Path("/dev/shm")
"""Where files lie in main memory."""
_NEW, _HELD = "videonsa-new-", "videonsa-temporary-"
"""How the name of a folder that ends with its server begins: before it is locked, and then."""


class StateFolder(NamedTuple):
    """Where files lie while a server runs."""

    requests: Path
    """What requests bring with them, a folder each, until they are answered."""
    files: Path
    """Uploads."""
    sessions: Path
    """Those that are kept on disk."""
    memory: Path | None
    """Sessions that are kept in main memory; None: there is no place for files in it."""


@contextmanager
def open_state(folder: Path | None) -> Iterator[StateFolder]:
    """A folder for one server.

    Args:
        folder: made where it is not there, and kept; None: one of its own, removed at the end.

    Raises:
        UsageError: it cannot be written to, or another server holds it.
    """
    with ExitStack() as stack:
        memory = None
        with suppress(OSError):
            memory = stack.enter_context(own_folder(SHARED_MEMORY))
        if folder is None:
            folder = stack.enter_context(own_folder(Path(tempfile.gettempdir())))
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"--state {folder}: {one_line(error)}: name another folder"
                ) from error
            stack.enter_context(sole_writer(folder, work="serve"))
        yield _state_in(folder, memory)


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new folder there, removed at the end; what servers left that were killed is removed now.

    Raises:
        OSError: none can be made there.
    """
    for left in parent.glob(f"{_HELD}*"):
        with suppress(Timeout, OSError):  # its server runs, or removes it at this moment
            if left.lstat().st_uid == os.geteuid():
                with FileLock(left / LOCK, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=parent))
    with FileLock(folder / LOCK):
        try:
            # Servers that start look for it only by the name that it has from now on.
            folder = folder.rename(parent / folder.name.replace(_NEW, _HELD))
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _state_in(folder: Path, memory: Path | None) -> StateFolder:
    requests, files, sessions = (folder / name for name in ("requests", "files", "sessions"))
    for left in (requests, sessions):  # of a server that was killed
        shutil.rmtree(left, ignore_errors=True)
    for part in (requests, files, sessions):
        part.mkdir(mode=0o700, exist_ok=True)
    return StateFolder(requests, files, sessions, memory)
