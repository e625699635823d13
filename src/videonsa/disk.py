"""Files that a crash of the machine leaves whole."""

import os
from pathlib import Path


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
