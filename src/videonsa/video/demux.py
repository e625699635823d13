"""Opening a video file through PyAV: which formats are read, and which of its streams."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from videonsa.errors import VideoError

READ_ERRORS = (av.FFmpegError, OSError)
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg"),
    *("flv", "live_flv", "asf", "gif", "ogg", "mxf", "nut", "rm", "dv", "wtv", "dhav", "ivf"),
    *("mpegvideo", "m4v", "h263", "h264", "hevc", "vvc", "av1", "obu", "vc1", "mjpeg"),
    "yuv4mpegpipe",
)
"""Demuxers that are used, whatever a file's name says: none that opens further files or addresses
(playlists, lists, patterns of images), shows text as a film or calls another program."""
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
_MAJOR = int(av.__version__.split(".")[0])
_READ_ANYHOW: dict[str, Any] = {"metadata_errors": "replace"} if _MAJOR < 19 else {}
"""Titles in an unknown encoding must not stop reading; from PyAV 19 on they do not."""
MOST_PIXELS = 2**26
"""Pixels of the largest pictures that are decoded: 8192 x 8192. Decoders hold several..."""
MOST_BYTES = 2**27
"""... so that their bytes are bounded too: 8192 x 5461 with 10 bits and half the colours."""
_LIMIT = {"max_pixels": str(MOST_PIXELS)}
_LIMIT_PROBING: dict[str, Any] = {"options": _LIMIT} if _MAJOR >= 18 else {}
"""Opening a file may decode a picture. Older PyAVs crash on options where streams turn up late."""
_HEAD_BYTES = 64
_SIGNATURE_BYTES = 16
_BEHIND_BYTES = 2**24
"""Bytes after the last packet of a video that are searched for the index of an mp4."""
_KINDS = {
    b"#EXTM3U": "a playlist",
    b"ffconcat": "a list of files",
    b"<?xml": "XML",
    b"<MPD": "a DASH manifest",
    b"<svg": "an SVG drawing",
    b"%!PS": "PostScript",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"RIFF": "a RIFF file that is no AVI",
    b"ID3": "an audio file",
    b"fLaC": "an audio file",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
}
"""What files begin with that are taken for videos by their name."""


class ReadableFile(Protocol):
    """What bytes are read from, one after the other: it cannot be sought in."""

    @property
    def name(self) -> str:
        """Whose suffix helps to tell the format."""

    def read(self, size: int) -> bytes:
        """At least one byte and at most `size`; none at the end."""


@contextmanager
def open_video(
    path: Path, file: ReadableFile | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container of a file, at its beginning, and the video stream that is read.

    Args:
        path: of the file.
        file: what reads it, in place of FFmpeg.

    Raises:
        VideoError: not a video, of a format that is not read, without a stream to decode, or with
            pictures that are too large.

    """
    try:
        container = av.open(
            f"file:{path}" if file is None else file,
            "r",
            container_options=_OPTIONS,
            **_LIMIT_PROBING,
            **_READ_ANYHOW,
        )
    except READ_ERRORS as error:
        raise VideoError(_why_not_open(path, error)) from error
    with container:
        stream = _chosen(path, container)
        _check_size(path, stream)
        stream.codec_context.options = _LIMIT
        yield container, stream


def stream_note(container: InputContainer, stream: VideoStream) -> str | None:
    """Which stream is read, in words, where there was a choice."""
    streams = _pictures(container)
    if len(streams) == 1:
        return None
    place = streams.index(stream) + 1
    why = "flagged as default" if stream.disposition & Disposition.default else "the largest"
    if len({(_is_default(other), _area(other)) for other in streams}) == 1:
        why = "the first of equals"
    return (
        f"{len(streams)} video streams: number {place}, {why}, {stream.width}x{stream.height}, "
        "is read and no other"
    )


def _chosen(path: Path, container: InputContainer) -> VideoStream:
    """The stream flagged as default, else the largest; pictures of covers are none."""
    streams = _pictures(container)
    if not streams:
        held = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
        raise VideoError(
            f"{path}: no video stream (it holds {', '.join(held)}): want a file with moving "
            "pictures; if it should be one, it was cut off: copy or download it again"
        )
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise VideoError(
            f"{path}: its video codec is unknown to PyAV {av.__version__}: "
            "convert it, for example to h264 in mp4"
        )
    return max(known, key=lambda stream: (_is_default(stream), _area(stream)))


def second_file(path: Path, last_byte: int) -> str | None:
    """What to say if another file of the same kind follows the packets that are read."""
    with suppress(OSError), path.open("rb") as file:
        begin = file.read(_SIGNATURE_BYTES)
        file.seek(last_byte)
        place = file.read(_BEHIND_BYTES).find(begin) if last_byte > 0 else -1
        if place >= 0:
            return (
                f"another file begins at byte {last_byte + place} and is not read: to join files, "
                "write them anew with a tool for videos"
            )
    return None


def picture_bytes(stream: VideoStream) -> int:
    """Bytes of one decoded picture."""
    bits = stream.format.padded_bits_per_pixel if stream.pix_fmt else 12
    return stream.width * stream.height * bits // 8


def _check_size(path: Path, stream: VideoStream) -> None:
    if stream.width * stream.height > MOST_PIXELS or picture_bytes(stream) > MOST_BYTES:
        raise VideoError(
            f"{path}: pictures of {stream.width}x{stream.height} {stream.pix_fmt or ''} take "
            f"{picture_bytes(stream) / 2**20:.0f} MiB each: want at most {MOST_PIXELS // 10**6} "
            f"megapixels and {MOST_BYTES // 2**20} MiB; scale the video down first"
        )


def _pictures(container: InputContainer) -> list[VideoStream]:
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]


def _is_default(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.default)


def _area(stream: VideoStream) -> int:
    return 0 if stream.codec_context is None else stream.width * stream.height


def _why_not_open(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[4:8] == b"ftyp":
        return (
            f"{path}: an mp4 without a usable index ({reason}): want a whole file; it was probably "
            "cut off, so copy or download it again"
        )
    wanted = "want mp4, mkv, webm, avi, mov, gif, a folder of images or an image"
    kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
    # What the list of formats leaves out is an invalid argument to FFmpeg, not invalid data.
    if kind is None and getattr(error, "errno", None) == errno.EINVAL:
        kind = "a text file" if head.isascii() else "a file of a format that is not read"
    if kind is not None:
        return f"{path}: {kind}: {wanted}"
    return f"{path}: not a video that can be opened ({reason}): {wanted}"
