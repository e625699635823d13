"""How fast a disk takes and gives a plain file."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MOST_BYTES = 4_000_000_000
PIECE = 2**24


class Transfer(NamedTuple):
    """Bytes to a disk, or from it."""

    num_bytes: int
    seconds: float


def disk_speed(folder: Path, num_bytes: int) -> dict[str, Transfer]:
    """Write and read a plain file of random bytes, by 16 MB at a time.

    Args:
        folder: on that disk.
        num_bytes: of the file; at most 4 GB are taken, and half of what is free.
    """
    size = min(num_bytes, MOST_BYTES, shutil.disk_usage(folder).free // 2)
    piece = os.urandom(min(PIECE, max(size, 1)))
    count = max(size // len(piece), 1)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made, "plain")
        begin = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(count):
                file.write(piece)
            os.fsync(file.fileno())
        written = time.perf_counter() - begin
        forget_pages(path)
        room = bytearray(len(piece))
        begin = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass
        read = time.perf_counter() - begin
    moved = count * len(piece)
    return {"write": Transfer(moved, written), "read": Transfer(moved, read)}


def forget_pages(path: Path) -> None:
    """Ask the system to forget what it holds of a file, or of all files of a folder."""
    for one in path.rglob("*") if path.is_dir() else (path,):
        if one.is_file() and hasattr(os, "posix_fadvise"):
            descriptor = os.open(one, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
