"""Files that clients upload once, to ask about them many times."""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from videonsa.disk import folder_to_disk
from videonsa.errors import UsageError
from videonsa.parsing import read_json_object, typed
from videonsa.server.errors import RefusedRequest

CONTENT, FACTS = "content", "file.json"
"""In the folder of a file."""
SOONEST, LATEST = 3600, 30 * 24 * 3600
"""Seconds after which a file may be asked to expire, as OpenAI has it."""
MOST_FILES = 10_000
_PARTIAL = "receiving-"
_NAME = re.compile(r"file-[0-9a-f]{24}")
_MOST_NAME = 255
_MOST_PURPOSE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """What is known of an upload."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    """Seconds since 1970."""
    expires_at: int | None
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return asdict(self) | {"object": "file", "status": "processed"}


class Uploads:
    """The files in a folder. For several threads."""

    def __init__(self, folder: Path, *, most_bytes: int, budget: int) -> None:
        """Take over what is there; what was not received to its end is removed.

        Args:
            folder: of this server alone.
            most_bytes: of a file.
            budget: bytes of all files together.
        """
        self.folder, self.most_bytes, self.budget = folder, most_bytes, budget
        self._lock = threading.Lock()
        self._receiving = 0
        self._files: dict[str, StoredFile] = {}
        for path in folder.iterdir():
            try:
                found = typed(StoredFile, read_json_object(path / FACTS))
            except (UsageError, ValueError, TypeError):
                if path.name.startswith(_PARTIAL) or _NAME.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
                continue
            self._files[found.id] = found

    @property
    def num_bytes(self) -> int:
        """Of all files, those being received included."""
        return self._receiving + sum(one.bytes for one in self._files.values())

    def files(self) -> list[StoredFile]:
        """All there are, the oldest first."""
        self._expire()
        with self._lock:
            return sorted(self._files.values(), key=lambda one: (one.created_at, one.id))

    def get(self, name: str) -> StoredFile | None:
        """A file by its id."""
        self._expire()
        return self._files.get(name)

    def path(self, stored: StoredFile) -> Path:
        """Where the content of a file is."""
        return self.folder / stored.id / CONTENT

    def delete(self, name: str) -> bool:
        """Remove a file. Returns whether there was one."""
        with self._lock:
            found = self._files.pop(name, None)
        if found is not None:
            shutil.rmtree(self.folder / found.id, ignore_errors=True)
        return found is not None

    def receive(self) -> "Incoming":
        """Begin with a new file.

        Raises:
            RefusedRequest: 413, there is no room.
        """
        self._expire()
        with self._lock:
            if len(self._files) >= MOST_FILES:
                raise self._full()
        return Incoming(self, Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder)))

    def take(self, num_bytes: int) -> None:
        """Reserve room. RefusedRequest where there is none."""
        with self._lock:
            if self.num_bytes + num_bytes > self.budget:
                raise self._full()
            self._receiving += num_bytes

    def add(self, folder: Path, stored: StoredFile) -> None:
        """Put a file that was received whole to its place."""
        folder.rename(self.folder / stored.id)
        with self._lock:
            self._receiving -= stored.bytes
            self._files[stored.id] = stored

    def give_back(self, num_bytes: int) -> None:
        """Room of what does not come."""
        with self._lock:
            self._receiving -= num_bytes

    def _full(self) -> RefusedRequest:
        return RefusedRequest(
            413,
            f"{len(self._files)} files take what uploads may take here ({self.budget} bytes): "
            "delete some, or begin the server with a larger --max-stored",
            code="storage_full",
        )

    def _expire(self) -> None:
        now = time.time()
        with self._lock:
            gone = [one.id for one in self._files.values() if (one.expires_at or now) < now]
        for name in gone:
            self.delete(name)


class Incoming:
    """A file that is being received: kept at the end, or nothing of it stays."""

    def __init__(self, uploads: Uploads, folder: Path) -> None:
        self._uploads, self._folder = uploads, folder
        self._file = (folder / CONTENT).open("wb")
        self._digest = hashlib.sha256()
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not kept."""
        self._file.close()
        if self._folder.exists():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._uploads.give_back(self._taken)

    @property
    def content(self) -> Path:
        """The file, for whoever looks at it before it is kept."""
        self._file.flush()
        return self._folder / CONTENT

    @property
    def sha256(self) -> str:
        """Of what came so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Take what comes next.

        Raises:
            RefusedRequest: 413, larger than a file may be, or than there is room for.
        """
        if self._taken + len(data) > self._uploads.most_bytes:
            raise RefusedRequest(
                413,
                f"the upload is larger than {self._uploads.most_bytes} bytes: want a smaller file, "
                "or begin the server with a larger --max-upload",
                code="media_too_large",
            )
        self._uploads.take(len(data))
        self._taken += len(data)
        self._file.write(data)
        self._digest.update(data)

    def keep(self, filename: str, fields: Mapping[str, str]) -> StoredFile:
        """Put the file to its place, atomically.

        Args:
            filename: as the client calls it; of no effect.
            fields: those that OpenAI's clients send beside it.

        Raises:
            RefusedRequest: 400, fields that are not understood.
        """
        seconds, now = _checked(fields), int(time.time())
        stored = StoredFile(
            id=f"file-{secrets.token_hex(12)}",
            filename=_shown_name(filename),
            purpose=fields["purpose"],
            bytes=self._taken,
            created_at=now,
            expires_at=None if seconds is None else now + seconds,
            sha256=self.sha256,
        )
        self._file.close()
        (self._folder / FACTS).write_text(json.dumps(asdict(stored)))
        os.chmod(self._folder / CONTENT, 0o600)
        folder_to_disk(self._folder)
        self._uploads.add(self._folder, stored)
        return stored


def _checked(fields: Mapping[str, str]) -> int | None:
    """Seconds after which a file expires, where a client says so."""
    purpose = fields.get("purpose", "")
    if not (purpose.isidentifier() and len(purpose) <= _MOST_PURPOSE):
        raise RefusedRequest(400, "purpose: want a word such as user_data", param="purpose")
    unknown = fields.keys() - {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
    if unknown:
        name = min(unknown)[:_MOST_PURPOSE]
        raise RefusedRequest(400, f"{name!r} is no field of an upload: leave it out", param=name)
    given = fields.get("expires_after[seconds]")
    if given is None and "expires_after[anchor]" not in fields:
        return None
    seconds = 0
    with suppress(ValueError):
        seconds = int((given or "")[:12])
    anchor = fields.get("expires_after[anchor]", "created_at")
    if anchor != "created_at" or not SOONEST <= seconds <= LATEST:
        raise RefusedRequest(
            400,
            f"expires_after: want the anchor created_at, and seconds from {SOONEST} to {LATEST}",
            param="expires_after",
        )
    return seconds


def _shown_name(filename: str) -> str:
    """For readers: without folders and what cannot be shown."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(one for one in name if one.isprintable())[:_MOST_NAME] or "file"
