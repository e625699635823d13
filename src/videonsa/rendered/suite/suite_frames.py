"""The frames of any stretch of a script, and its video file."""

from collections.abc import Iterator
from pathlib import Path

import torch

from videonsa.errors import UsageError
from videonsa.ops.drawing import draw_frames
from videonsa.rendered.clips.clip_frames import encode_h264
from videonsa.rendered.suite.script import Script
from videonsa.rendered.suite.suite_drawing import drawing_at, drawing_of

_CHUNK = 64


def render_frames(
    script: Script, first: int, last: int, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Frames first to last - 1, at 2 a second: uint8 [last - first, 3, S, S], on a device.

    A frame's bytes are the same however the video is cut, and wherever it is drawn.
    """
    if not 0 <= first < last <= script.num_frames:
        raise UsageError(
            f"first={first}, last={last}: want 0 <= first < last <= {script.num_frames}"
        )
    return draw_frames(drawing_of(script, first, last), device=device)


def iter_frames(
    script: Script, *, chunk: int = 64, device: torch.device | str = "cpu"
) -> Iterator[torch.Tensor]:
    """All frames in order, `chunk` at a time: uint8 [<= chunk, 3, S, S], on a device."""
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: want at least 1 frame")
    for first in range(0, script.num_frames, chunk):
        last = min(first + chunk, script.num_frames)
        yield render_frames(script, first, last, device=device)


def write_suite_video(script: Script, path: Path, *, fps: int = 8) -> None:
    """Encode as H.264 at `fps` frames a second, without noise, a stretch of frames at a time.

    Written atomically: no file on failure.
    """
    length = int(script.duration * fps)
    stretches = (range(i, min(i + _CHUNK, length)) for i in range(0, length, _CHUNK))
    images = (draw_frames(drawing_at(script, [i / fps for i in part])) for part in stretches)
    encode_h264(images, path, size=script.spec.frame_size, fps=fps)
