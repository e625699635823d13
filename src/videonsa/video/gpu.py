"""The frames of a video file from the decoder of an NVIDIA GPU, through torchcodec.

Written from torchcodec's documentation and untested on a GPU: `GPU_NOTE` says so wherever it is
used. Times, sampling and resizing are those of the other decoder; colours may differ by rounding.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videonsa.errors import UsageError, VideoError
from videonsa.video.container import TIME_TOLERANCE, SourceFrame, VideoFile
from videonsa.video.segments import Layout, Segment, whole_layout

GPU_NOTE = "decoded by the GPU through torchcodec: this is untested, compare with --decoder cpu"
BATCH_BYTES = 2**28
"""Bytes of decoded frames, at the size of the source, that are on the GPU together."""
BEFORE_END = 1e-6
"""Seconds before the end of the stream at which its last frame is still on screen."""
OpenDecoder = Callable[[Path], Any]
"""A path to what has the methods of torchcodec's `VideoDecoder`."""


class GpuSource:
    """A video file that is read in one go, by targets."""

    def __init__(self, path: Path, *, open_decoder: OpenDecoder | None = None) -> None:
        self._open_decoder = cuda_decoder() if open_decoder is None else open_decoder
        self._file = VideoFile(path)
        self.info = self._file.info
        if self._file.peculiarity is not None:
            # It is not known which releases of torchcodec handle this.
            raise UsageError(f"{path}: {self._file.peculiarity}: want --decoder cpu for it")

    def layout(self, targets: Sequence[float], *, keyframes: bool) -> Layout:
        """All targets in one part: the GPU is one decoder."""
        if keyframes:
            raise UsageError("keyframes with --decoder gpu: leave out one of the two")
        return whole_layout(targets)

    @contextmanager
    def reader(self, layout: Layout) -> Iterator[Callable[[Segment], Iterator[SourceFrame]]]:
        """What reads the only segment."""
        decoder = self._guarded(lambda: self._open_decoder(self._file.path))
        if not hasattr(decoder, "cpu_fallback"):
            raise UsageError(
                "this torchcodec does not say whether the GPU decodes: want a newer one, "
                "or --decoder cpu"
            )
        yield lambda segment: self._frames(decoder, layout.targets)

    def _frames(self, decoder: Any, targets: Sequence[float]) -> Iterator[SourceFrame]:
        """The frames on screen at the targets, each once."""
        begin, end = (
            decoder.metadata.begin_stream_seconds,
            decoder.metadata.end_stream_seconds - BEFORE_END,
        )
        origin = self._file.origin_seconds
        period = 1 / self.info.fps if self.info.fps > 0 else 0.0
        size = max(1, BATCH_BYTES // (3 * self.info.width * self.info.height))
        last = -1.0
        for first in range(0, len(targets), size):
            seconds = [
                min(max(origin + target + TIME_TOLERANCE, begin), end)
                for target in targets[first : first + size]
            ]
            played = self._guarded(partial(decoder.get_frames_played_at, seconds))
            if decoder.cpu_fallback:
                raise VideoError(
                    f"{self.info.path}: its {self.info.codec} is not decoded by this GPU "
                    f"({decoder.cpu_fallback}): want --decoder cpu"
                )
            spans = zip(played.pts_seconds.tolist(), played.duration_seconds.tolist(), strict=True)
            for picture, (shown, duration) in zip(played.data, spans, strict=True):
                time = shown - origin
                if time > last:
                    yield SourceFrame(
                        time=time,
                        end=time + max(duration, period),
                        after_error=False,
                        damaged=False,
                        rgb=partial(_to_rgb, picture),
                    )
                    last = time

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise VideoError(
                f"{self.info.path}: the GPU does not decode it ({line}): want --decoder cpu"
            ) from error


def cuda_decoder() -> OpenDecoder:
    """The decoder of torchcodec, on the GPU. `UsageError` without torchcodec, or without a GPU."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except Exception as error:  # also libraries of FFmpeg that are missing
        missing = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if missing else f"cannot be used ({type(error).__name__})"
        raise UsageError(
            f"--decoder gpu: torchcodec {reason}: install a build of it for CUDA, and FFmpeg, "
            "or leave --decoder out"
        ) from error
    if not torch.cuda.is_available():
        raise UsageError("--decoder gpu: no CUDA GPU here: leave --decoder out")
    return partial(decoders.VideoDecoder, device="cuda")


def _to_rgb(picture: Tensor) -> NDArray[np.uint8]:
    """[3, H, W] to [H, W, 3], on the CPU."""
    rgb: NDArray[np.uint8] = picture.permute(1, 2, 0).cpu().numpy()
    return rgb
