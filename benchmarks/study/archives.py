"""Folders as archives: a tar in parts of limited size, put together again elsewhere."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from videonsa.disk import write_atomic
from videonsa.errors import UsageError

PART_BYTES = 15 * 2**20
"""Most bytes of a part of an archive."""
STATE_BYTES = 48 * 2**20
"""Most bytes that a run may need to resume elsewhere."""


def pack(paths: Iterable[Path], *, base: Path, out: Path, name: str) -> list[Path]:
    """Write files and folders as `NAME.tar.00`, `NAME.tar.01`, ... and remove older parts.

    Args:
        paths: files and folders to pack, below `base`.
        base: names in the tar are relative to it.
        out: folder of the parts.
        name: of the archive.

    Returns:
        The parts, in order.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in sorted(paths):
            tar.add(path, path.relative_to(base).as_posix())
    whole = content.getbuffer()
    out.mkdir(parents=True, exist_ok=True)
    for old in parts_of(out, name):
        old.unlink()
    for index, first in enumerate(range(0, len(whole), PART_BYTES)):
        write_atomic(out / f"{name}.tar.{index:02}", bytes(whole[first : first + PART_BYTES]))
    return parts_of(out, name)


def parts_of(folder: Path, name: str) -> list[Path]:
    """The parts of an archive, in order."""
    return sorted(folder.glob(f"{name}.tar.[0-9][0-9]"))


def unpack(folder: Path, *, base: Path) -> list[str]:
    """Unpack every archive of a folder under `base`.

    Returns:
        The names of the archives.

    Raises:
        UsageError: there is no archive, or one lacks a part.
    """
    names = sorted({path.name.split(".tar.")[0] for path in folder.glob("*.tar.[0-9][0-9]")})
    if not names:
        raise UsageError(f"{folder} has no parts NAME.tar.00, ...: name the folder of 'pack'")
    for name in names:
        content = b"".join(path.read_bytes() for path in parts_of(folder, name))
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                tar.extractall(base, filter="data")
        except tarfile.TarError as error:
            raise UsageError(f"{folder}: {name} lacks a part ({error}): bring all") from error
    return names
