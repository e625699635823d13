"""Media of a request as files here, and the digest of what they hold."""

import base64
import binascii
import hashlib
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from videonsa.server.errors import RefusedRequest


class LocalMedia:
    """The files of one request; what was written for it is removed at the end."""

    def __init__(self, folder: Path | None) -> None:
        """Take files from under a folder; None: only what a request brings with it."""
        self._folder = None if folder is None else folder.resolve()
        self._own = Path(tempfile.mkdtemp(prefix="videonsa-"))

    def get(self, url: str, param: str) -> tuple[Path, str]:
        """A file, and its digest. RefusedRequest where there is none to be had."""
        path = self._data(url, param) if url.startswith("data:") else self._file(url, param)
        with path.open("rb") as file:
            return path, hashlib.file_digest(file, "sha256").hexdigest()

    def close(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._own, ignore_errors=True)

    def _data(self, url: str, param: str) -> Path:
        head, _, data = url.partition(",")
        try:
            if not head.endswith(";base64"):
                raise ValueError("no base64")
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RefusedRequest(
                400, f"a data: URL is not valid base64: {error}", param=param
            ) from error
        path = Path(tempfile.mkstemp(dir=self._own)[1])
        path.write_bytes(content)
        return path

    def _file(self, url: str, param: str) -> Path:
        parts = urlsplit(url)
        if parts.scheme == "file" and self._folder is not None:
            path = Path(url2pathname(parts.path)).resolve()
            if path.is_relative_to(self._folder) and path.is_file():
                return path
        raise RefusedRequest(400, "want a data: URL, or file:// under --media", param=param)
