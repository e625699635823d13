"""Atomic writes of files and folders, and folders with one writer."""

import ctypes
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from videonsa.errors import UsageError
from videonsa.parsing import read_json_object

LOCK, HOLDER = ".lock", ".lock.json"
"""Beside the results of a folder: the lock, and who holds it."""
_PARTIAL = ".{}.{}.partial"
"""The name of a file that is being written: of what it becomes, and what makes it one's own."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2."""


def to_disk(path: Path) -> None:
    """Bring a file or a folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_to_disk(folder: Path) -> None:
    """Bring a folder onto the disk, and all that it holds."""
    for path in sorted(folder.rglob("*")):
        to_disk(path)
    to_disk(folder)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A new file beside `path`, of this writer's own, that takes its place if all goes well.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.

    """
    if path.exists() and not path.is_file():  # a device such as /dev/null would be replaced
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    prefix, suffix = _PARTIAL.format(path.name, "/").split("/")
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(mode_of_new_files())  # mkstemp lets its owner alone read
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file; a reader finds the old content or the new, never a part.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.

    """
    with partial_file(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def place_folder(partial: Path, target: Path) -> None:
    """Bring a filled folder onto the disk and to its place; what was there before is removed.

    On Linux one of the two is at the place at any moment. Where folders cannot be exchanged, one
    that is killed in between leaves what was there before as `replaced_by` says.

    Raises:
        OSError: it cannot be put there; what was there before is back.

    """
    folder_to_disk(partial)
    if target.exists() and _exchange(partial, target):
        to_disk(target.parent)
        shutil.rmtree(partial)
        return
    if target.exists():
        old = replaced_by(target)
        target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
    else:
        partial.rename(target)
    to_disk(target.parent)


def replaced_by(target: Path) -> Path:
    """Where the folder lies, for a moment, in whose place `target` comes."""
    return target.with_name(f".{target.name}.replaced")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    paths = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    return bool(rename(*paths, _RENAME_EXCHANGE) == 0)


@contextmanager
def new_folder(target: Path, *, work: str) -> Iterator[Path]:
    """An empty folder beside `target`, with one writer, that takes its place if all goes well.

    What a killed writer left there is removed.

    Args:
        target: the folder to make or to replace.
        work: as for `sole_writer`.

    Raises:
        UsageError: another process makes the same folder; says which.
        OSError: it cannot be written, or not put in its place.

    """
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with sole_writer(partial, work=work):
        try:
            for left in partial.iterdir():
                if left.name not in (LOCK, HOLDER):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
            for own in (HOLDER, LOCK):
                (partial / own).unlink()
            place_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_room(what: str, folder: Path, num_bytes: int, *, remedy: str) -> None:
    """Refuse what does not fit the disk, before anything is written.

    Args:
        what: will be written, the first words of the message.
        folder: that exists, on that disk.
        num_bytes: that it needs.
        remedy: what to do, the end of the message.

    Raises:
        UsageError: fewer bytes are free.

    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UsageError(
            f"{what} needs {num_bytes / 1e9:.2f} GB but {free / 1e9:.2f} GB are free: {remedy}"
        )


def mode_of_new_files() -> int:
    """By the umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def sole_writer(folder: Path, *, work: str, part: str = "") -> Iterator[None]:
    """Hold a folder that exists, so that no second run writes into it; a killed one lets go.

    Partial files that a killed run left are removed, unless others may hold the folder too.

    Args:
        folder: where results go.
        work: what is being done there, in one or two words for who comes second.
        part: the name of a file in it, which alone is held: processes of one run write one each.

    Raises:
        UsageError: another process holds it; says which.
        OSError: the folder cannot be written to.

    """
    from filelock import FileLock, Timeout

    mark = f".{part}" if part else ""
    holder = folder / f"{mark}{HOLDER}"
    lock = FileLock(folder / f"{mark}{LOCK}", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{folder / part} is being written by {_holder(holder)}: wait for it, or name another "
            "folder"
        ) from error
    try:
        for left in () if part else folder.glob(_PARTIAL.format("*", "*")):  # of killed runs
            left.unlink(missing_ok=True)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"work": work, "process": os.getpid(), "machine": socket.gethostname()}
        write_atomic(holder, json.dumps(facts | {"since": since}) + "\n")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def _holder(path: Path) -> str:
    with suppress(UsageError):
        facts = read_json_object(path)
        words = [str(facts.get(name)) for name in ("work", "process", "machine", "since")]
        return "{} (process {} on {}, since {})".format(*words)
    return "another process"
