"""Media that a request names, as files here: checked, within limits, and gone after it."""

import binascii
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from videonsa.errors import UsageError, VideoError
from videonsa.server.asked import Kind
from videonsa.server.errors import Gone, RefusedRequest
from videonsa.server.fetching import PORTS, Fetcher, check_hosts
from videonsa.server.frames import FrameReader
from videonsa.server.state import StateFolder
from videonsa.server.uploads import Uploads
from videonsa.video.demux import MOST_PIXELS
from videonsa.video.sampling import VideoInfo

MOST_URL = 8192
"""Characters of an address that is no data: URL."""
_KERNEL = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))
"""Files that are none: what the system tells of itself, and its devices."""
_LIMITS = (
    *("most_bytes", "most_stored", "most_seconds", "most_frames", "most_pixels"),
    "fetch_seconds",
)
_KNOWN = 4096
"""Files whose digest and header are remembered."""
Stamp = tuple[int, ...]
"""Changes with the content of a file."""
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaPolicy:
    """Which media are taken. The defaults are safe for clients that nobody knows."""

    folder: Path | None = None
    """Whose files file:// may name; None: none."""
    hosts: tuple[str, ...] = ()
    """From which http(s) addresses are fetched, NAME or NAME:PORT."""
    most_bytes: int = 2**30
    """Of an upload, or of what a request has downloaded."""
    most_stored: int = 10 * 2**30
    """Of all uploads together."""
    most_seconds: float = 4 * 3600.0
    """Of a video."""
    most_frames: int = 2_000_000
    """Of a video, sampled or not: those of its file."""
    most_pixels: int = MOST_PIXELS
    """Of a picture as the file has it, before it is decoded."""
    fetch_seconds: float = 60.0
    """Of a download."""

    def __post_init__(self) -> None:
        """Refuse values outside the domain, and folders that are not there: UsageError."""
        for name in _LIMITS:
            if not 0 < getattr(self, name) < 2**62:
                raise UsageError(f"{name}={getattr(self, name)}: want a number above 0")
        check_hosts(self.hosts)
        if self.folder is not None:
            if not self.folder.is_dir():
                raise UsageError(f"--media {self.folder}: no such folder: name one with videos")
            object.__setattr__(self, "folder", self.folder.resolve())

    def check(self, info: VideoInfo, *, kind: Kind, param: str) -> None:
        """Refuse a video or an image by what its header states.

        Raises:
            RefusedRequest: 413 too large, 400 a video where an image is wanted.
        """
        frames, pixels = info.num_frames or 0, info.width * info.height
        for found, most, unit in (
            (frames, self.most_frames, "frames"),
            (info.duration, self.most_seconds, "s"),
            (pixels, self.most_pixels, "pixels a picture"),
        ):
            if not found <= most:  # NaN too
                raise RefusedRequest(
                    413,
                    f"the {'image' if info.is_image else 'video'} states {found:,.15g} {unit}: "
                    f"this server takes at most {most:,.15g}; cut it, or scale it down",
                    param=param,
                    code="media_too_large",
                )
        if kind == "image" and not info.is_image:
            raise RefusedRequest(
                400, "a video or an animation came as image_url: send it as video_url", param=param
            )


class Found(NamedTuple):
    """Media of a request."""

    path: Path
    digest: str
    """SHA-256 of the file, as hex digits."""
    info: VideoInfo
    stamp: Stamp
    """Of the file, from before its digest was taken."""


class MediaSources:
    """Where the media of all requests come from."""

    def __init__(
        self,
        policy: MediaPolicy,
        *,
        state: StateFolder,
        reader: FrameReader,
        fetcher: Fetcher | None = None,
    ) -> None:
        """Take media as a policy says.

        Args:
            policy: what is taken.
            state: where files lie.
            reader: reads headers, and thumbnails of frames.
            fetcher: downloads; None is one as the policy says.
        """
        self.policy, self.scratch = policy, state.requests
        self.uploads = Uploads(state.files, most_bytes=policy.most_bytes, budget=policy.most_stored)
        self.fetcher = fetcher or Fetcher(
            hosts=check_hosts(policy.hosts),
            most_bytes=policy.most_bytes,
            seconds=policy.fetch_seconds,
        )
        self._reader = reader
        self._digests = _Recent[Stamp, str](_KNOWN)
        self._infos = _Recent[str, VideoInfo](_KNOWN)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file; one that did not change since is not read again."""
        return self._digests.get(stamp_of(path), lambda: _digest(path))

    def info(self, path: Path, digest: str) -> VideoInfo:
        """What the header of a file states. VideoError where it is no video and no image."""
        try:
            return self._infos.get(digest, lambda: self._reader.describe(path))
        except VideoError as error:  # where files lie here is nobody's business
            raise VideoError(str(error).replace(str(path), "the file")) from error

    def thumbnails(self, path: Path, times: Sequence[float], *, longest: int) -> list[str]:
        """See `FrameReader`."""
        try:
            return self._reader.thumbnails(path, times, longest=longest)
        except VideoError as error:
            raise VideoError(str(error).replace(str(path), "the file")) from error


class RequestMedia:
    """The media of one request; what was written for it is removed at the end."""

    def __init__(self, sources: MediaSources) -> None:
        self._sources = sources
        self._own: Path | None = None
        self._num_fetched = 0
        self._stopped = threading.Event()

    def get(self, url: str, *, kind: Kind, param: str) -> Found:
        """A file, its digest and its header.

        Args:
            url: data:, file:, http(s):, or the id of an upload.
            kind: what it is to be; "file": a video or an image.
            param: the field of the request, for refusals.

        Raises:
            RefusedRequest: what is not allowed, not there, or too large.
            VideoError: it is no video and no image.
            Gone: nobody waits.
        """
        if self._stopped.is_set():
            raise Gone
        digest = None
        if kind == "file" or url.startswith("file-"):
            path, digest = self._uploaded(url, param)
        else:
            path = self._path(url, param)
        try:
            stamp = stamp_of(path)
            digest = digest or self._sources.digest(path)
        except OSError as error:
            raise _not_there(param) from error
        info = self._sources.info(path, digest)
        self._sources.policy.check(info, kind=kind, param=param)
        return Found(path, digest, info, stamp)

    def stop(self) -> None:
        """Nobody waits: a download ends."""
        self._stopped.set()

    def close(self) -> None:
        """Remove what was written."""
        self.stop()
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    def _path(self, url: str, param: str) -> Path:
        scheme = url[:16].partition(":")[0].lower() if ":" in url[:16] else ""
        if scheme == "data":
            return self._data(url, param)
        if scheme not in ("file", *PORTS):
            raise RefusedRequest(
                400,
                f"{url[:100]!r} is not taken: want a data: URL in base64, file:// under --media, "
                "http(s):// of a host that is allowed, or the id of an upload",
                param=param,
                code="unsupported_url",
            )
        if len(url) > MOST_URL:
            raise RefusedRequest(
                400, f"an address of {len(url)} characters: want at most {MOST_URL}", param=param
            )
        if scheme == "file":
            return local_file(self._sources.policy.folder, url, param)
        path, fetcher = self._new_file(), self._sources.fetcher
        most = fetcher.most_bytes - self._num_fetched
        fetcher.fetch(url, path, param=param, most_bytes=most, stopped=self._stopped.is_set)
        self._num_fetched += path.stat().st_size
        return path

    def _uploaded(self, name: str, param: str) -> tuple[Path, str]:
        uploads = self._sources.uploads
        found = uploads.get(name)
        if found is None:
            raise RefusedRequest(
                404,
                f"no file {name[:100]!r} here: upload it to /v1/files; it may have expired",
                param=param,
                code="file_not_found",
            )
        return uploads.path(found), found.sha256

    def _data(self, url: str, param: str) -> Path:
        head, comma, data = url.partition(",")
        most = self._sources.policy.most_bytes
        if len(data) * 3 // 4 > most + 3:
            raise RefusedRequest(
                413,
                f"a data: URL of {len(data) * 3 // 4} bytes: want at most {most}; begin the server "
                "with a larger --max-upload",
                param=param,
                code="media_too_large",
            )
        try:
            if not comma or not head.lower().endswith(";base64"):
                raise ValueError("it does not begin with data:TYPE;base64,")
            content = binascii.a2b_base64(data.encode("ascii"), strict_mode=True)
            if not content:
                raise ValueError("it is empty")
        except ValueError as error:  # binascii's and those of encodings are such
            reason = "not ASCII" if isinstance(error, UnicodeError) else str(error)
            raise RefusedRequest(
                400,
                f"a data: URL is not valid base64 ({reason}): want data:video/mp4;base64, and the "
                "file in base64 without line breaks",
                param=param,
                code="invalid_base64",
            ) from error
        path = self._new_file()
        path.write_bytes(content)
        return path

    def _new_file(self) -> Path:
        """In a folder of this request, without a suffix: what is in a file tells its kind."""
        if self._own is None:
            self._own = Path(tempfile.mkdtemp(dir=self._sources.scratch))
        descriptor, name = tempfile.mkstemp(prefix="media-", dir=self._own)
        os.close(descriptor)
        return Path(name)


def local_file(folder: Path | None, url: str, param: str) -> Path:
    """The file that a file: URL names, symbolic links followed.

    Args:
        folder: resolved, in which it has to lie; None allows none.
        url: with an absolute path, or one from the folder on, as in file:clip.mp4.
        param: the field of the request, for refusals.

    Raises:
        RefusedRequest: 403 outside the folder or no regular file, 404 not there, 400 no such URL.
    """
    if folder is None:
        raise RefusedRequest(
            403,
            "file:// is not taken: this server was begun without --media; upload the file, or send "
            "it as a data: URL",
            param=param,
            code="file_not_allowed",
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("file://?")
    text = url2pathname(parts.path)
    whole = parts.netloc in ("", "localhost") and not (parts.query or parts.fragment)
    if not whole or not text or not (text.isprintable() and url.isprintable()):
        raise RefusedRequest(
            400,
            f"{url[:200]!r} names no file here: want file:///PATH, percent-encoded",
            param=param,
            code="invalid_url",
        )
    try:
        path = (folder / text).resolve()
        inside = path.is_relative_to(folder) and not any(map(path.is_relative_to, _KERNEL))
        mode = path.stat().st_mode if inside else 0
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, names too long
        raise _not_there(param) from error
    # Of what lies outside, nothing is told: not even whether it is there.
    if not inside or not stat.S_ISREG(mode):
        raise RefusedRequest(
            403,
            f"{url[:200]!r} is no regular file in the folder that --media names: want one there",
            param=param,
            code="file_not_allowed",
        )
    return path


def _not_there(param: str) -> RefusedRequest:
    return RefusedRequest(
        404, "there is no such file, or it cannot be read", param=param, code="media_not_found"
    )


def stamp_of(path: Path) -> Stamp:
    """Device, inode, size and times of change of a file. OSError where there is none."""
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Recent(Generic[K, V]):
    """What was found out lately, for several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, find: Callable[[], V]) -> V:
        """What is known of a key, else what `find` gives, which may raise."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = find()
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        return value
