"""Small video files whose frames carry their number, so that a test can read which were taken."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
BLOCK = 16
HEIGHT, WIDTH = 64, BITS * BLOCK
MILLISECONDS = Fraction(1, 1000)

FORMATS = {
    "mp4": ("libx264", "yuv420p", {"bf": "2"}),
    "mkv": ("libx264", "yuv420p", {"bf": "2"}),
    "webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "avi": ("mpeg4", "yuv420p", {}),
    "mov": ("mpeg4", "yuv420p", {}),
    "gif": ("gif", "rgb8", {}),
    "ts": ("mpeg2video", "yuv420p", {"bf": "2"}),
}
"""Suffix: codec, pixel format, options. B-frames where the container stores them well."""


def picture(number: int, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """[H, W, 3]: columns that are white where `number` has a 1, lowest bit on the left."""
    column = np.arange(width) * BITS // width
    bits = (number >> column) & 1
    row = np.where(bits[:, None] == 1, 230, 20).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row, (height, width, 3)))


def number_of(frame) -> int:
    """The number that a frame [3, H, W] shows."""
    pixels = np.asarray(frame, dtype=np.float32).mean((0, 1))
    edges = np.linspace(0, len(pixels), BITS + 1)
    centres = ((edges[:-1] + edges[1:]) / 2).astype(int)
    return sum(int(pixels[x - 1 : x + 2].mean() > 128) << bit for bit, x in enumerate(centres))


def numbers_of(frames) -> list[int]:
    return [number_of(frame) for frame in frames]


def write_video(
    path: Path,
    *,
    num_frames: int = 60,
    fps: int = 30,
    times_ms: Sequence[int] | None = None,
    gop: int = 12,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    codec: tuple[str, str, dict[str, str]] | None = None,
    container_options: dict[str, str] | None = None,
    audio_seconds: float = 0.0,
    pictures: Sequence[np.ndarray] | None = None,
) -> Path:
    """Encode `num_frames` numbered frames, at `times_ms` where given; optionally with audio."""
    name, pix_fmt, options = codec or FORMATS[path.suffix[1:]]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(name, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.options = options | ({} if name == "gif" else {"g": str(gop)})
        if times_ms is not None:
            stream.codec_context.time_base = MILLISECONDS
        audio = container.add_stream("aac", rate=44100) if audio_seconds else None
        for index in range(num_frames):
            if pictures is None:
                array = picture(index, height=size[0], width=size[1])
            else:
                array = pictures[index]
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = index if times_ms is None else times_ms[index]
            frame.time_base = Fraction(1, fps) if times_ms is None else MILLISECONDS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _write_silence(container, audio, seconds=audio_seconds)
    return path


def _write_silence(container, stream, *, seconds: float) -> None:
    for index in range(max(1, int(seconds * 44100 / 1024))):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
        )
        frame.sample_rate = 44100
        frame.pts = index * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=44100), seconds=0.2)
    return path


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write x' = a x + c y, y' = b x + d y into the track header of an mp4 or mov."""
    data = bytearray(path.read_bytes())
    # tkhd version 0: type, version and flags, 20 bytes of times and ids, 16 of layer and volume.
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16
    one, tiny = 1 << 16, 1 << 30
    data[start : start + 36] = struct.pack(
        ">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, tiny
    )
    path.write_bytes(data)


def overwrite(path: Path, begin: float, end: float) -> None:
    """Replace the bytes between two fractions of a file by noise."""
    data = bytearray(path.read_bytes())
    first, last = int(begin * len(data)), int(end * len(data))
    data[first:last] = np.random.default_rng(0).bytes(last - first)
    path.write_bytes(data)


def truncate(path: Path, fraction: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
