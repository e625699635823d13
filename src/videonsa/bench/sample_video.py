"""Videos of 720p, made once: the files on which reading and sessions are measured."""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videonsa.disk import partial_file

WIDTH, HEIGHT, FPS = 1280, 720, 30
SCENE_SECONDS = 20


def sample_video(*, minutes: int = 10) -> Path:
    """The sample in the temporary folder, rendered unless it is there.

    A moving gradient under a bright square and grain, cut every 20 seconds; one minute is encoded,
    and its packets are written `minutes` times: decoding does not know.
    """
    path = Path(tempfile.gettempdir()) / f"videonsa-benchmark-{HEIGHT}p-{minutes}min.mp4"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder, partial_file(path) as partial:
            minute = Path(folder, "minute.mp4")
            _encode(minute, seconds=60)
            _repeat(minute, partial, times=minutes)
    return path


def sample_clip(*, seconds: int = 10) -> Path:
    """So many seconds of the same, in the temporary folder, rendered unless they are there."""
    path = Path(tempfile.gettempdir()) / f"videonsa-benchmark-{HEIGHT}p-{seconds}s.mp4"
    if not path.exists():
        with partial_file(path) as partial:
            _encode(partial, seconds=seconds)
    return path


def _repeat(minute: Path, path: Path, *, times: int) -> None:
    with av.open(str(path), "w", format="mp4") as target:
        copy = None
        for repeat in range(times):
            with av.open(str(minute)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    shift = int(repeat * 60 / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = copy
                    target.mux(packet)


def _encode(path: Path, *, seconds: int) -> None:
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 14, (8, HEIGHT, WIDTH), dtype=np.uint8)
    ramp = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint16)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for index in range(seconds * FPS):
            scene, step = divmod(index, SCENE_SECONDS * FPS)
            luma = ((ramp + 3 * step + 61 * scene) // 8 % 200).astype(np.uint8)
            x, y = (7 * step + 90 * scene) % (WIDTH - 160), (3 * step) % (HEIGHT - 160)
            luma[y : y + 160, x : x + 160] = 220
            luma += grain[index % 8]
            chroma = np.full((HEIGHT // 2, WIDTH), 100 + 8 * (scene % 8), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.vstack([luma, chroma]), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
