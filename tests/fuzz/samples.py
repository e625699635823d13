"""What is damaged: a tiny model, small files of every kind, a manifest, a trained run."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import av
import numpy as np
from PIL import Image, features

from tests.conftest import write_clip, write_tiny_model
from videonsa.cli.main import main

WIDTH, HEIGHT = 132, 92
"""Of all samples; found again in their headers."""
VIDEOS = {"mp4": "mpeg4", "mkv": "mpeg4", "avi": "mpeg4", "ts": "mpeg2video", "mov": "mjpeg"}
BUILD = ("clips:count=2,patches=8", "--model", "tiny", "--min-frames", "0", "--workers", "1")
TRAIN = (
    *("train", "tiny", "--set", "model.base=tiny", "--set", "data.manifest=data"),
    *("--set", "optimizer.steps=1", "--set", "run.seconds=5", "--out", "run"),
)
EVALUATION = (
    *("--model", "constant", "--lengths", "256", "--samples", "1", "--kinds", "needle"),
    *("--conditions", "blind", "--out", "eval"),
)


def make_samples(folder: Path) -> None:
    """Write all samples, and the odd files that paths lead to, into an empty folder."""
    write_tiny_model(folder / "tiny")
    write_clip(folder / "clip.mp4", num_frames=8, width=WIDTH, height=HEIGHT)
    media = folder / "media"
    media.mkdir()
    for suffix, codec in VIDEOS.items():
        _write_video(media / f"a.{suffix}", codec)
    _write_images(media)
    for argv in (
        ("data", "build", *BUILD, "--out", "data"),
        TRAIN,
        ("eval", "synthetic", *EVALUATION),
    ):
        run_quietly(argv, folder)
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "text.json").write_text('{"a": [1, 2]}')
    (folder / "loop").symlink_to("loop")
    (folder / "self").symlink_to(".")
    os.mkfifo(folder / "pipe")
    (folder / "locked").mkdir(mode=0o000)


def run_quietly(argv: tuple[str, ...], folder: Path) -> None:
    """Run a command that must go well, in a folder."""
    text = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
    ):
        status = main(argv)
    if status != 0:
        raise RuntimeError(f"{' '.join(argv)}: status {status}: {text.getvalue()}")


def copy_samples(samples: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copy some of them, links and pipes as such, into a folder that exists."""
    for name in names:
        source, target = samples / name, folder / name
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_fifo():
            os.mkfifo(target)
        elif source.is_dir() and name == "locked":
            target.mkdir(mode=0o000)
        elif source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def _picture(index: int) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows, columns, rows + 9 * index], -1).astype(np.uint8)


def _write_video(path: Path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25 if codec == "mpeg2video" else 4)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(_picture(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_images(folder: Path) -> None:
    pictures = [Image.fromarray(_picture(index)) for index in range(4)]
    suffixes = ["png", "jpg", "webp", "tiff", "bmp", "gif", "ppm"]
    if features.check("avif"):
        suffixes.append("avif")
    for suffix in suffixes:
        pictures[0].save(folder / f"a.{suffix}")
    for suffix in ("gif", "webp", "png", "tiff"):
        pictures[0].save(
            folder / f"moving.{suffix}", save_all=True, append_images=pictures[1:], duration=250
        )
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey.astype("uint16")).save(folder / "grey16.png")
    frames = folder / "frames"
    frames.mkdir()
    for index, picture in enumerate(pictures):
        picture.save(frames / f"{index}.jpg")
