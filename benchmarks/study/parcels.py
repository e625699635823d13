"""Folders as parts small enough to travel: a tar, cut, and put together again elsewhere."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from videonsa.disk import write_whole
from videonsa.errors import UsageError

PART_BYTES = 15 * 2**20
"""Of a file that travels."""
STATE_BYTES = 48 * 2**20
"""Most that a run may need to go on elsewhere."""


def pack(paths: Iterable[Path], *, base: Path, out: Path, name: str) -> list[Path]:
    """Write files and folders as `NAME.tar.00`, `NAME.tar.01`, ... and remove older parts.

    Args:
        paths: what is packed, below `base`.
        base: what their names in the tar count from.
        out: folder of the parts.
        name: of the parcel.

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
        write_whole(out / f"{name}.tar.{index:02}", bytes(whole[first : first + PART_BYTES]))
    return parts_of(out, name)


def parts_of(folder: Path, name: str) -> list[Path]:
    """The parts of a parcel, in order."""
    return sorted(folder.glob(f"{name}.tar.[0-9][0-9]"))


def unpack(folder: Path, *, base: Path) -> list[str]:
    """Put every parcel of a folder back under `base`.

    Returns:
        The names of the parcels.

    Raises:
        UsageError: no parcel there, or one that lacks a part.
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
