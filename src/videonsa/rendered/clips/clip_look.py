"""`ClipLook`: whether a video looks like the clips that the embedded model was trained on.

Such a clip shows shapes of plain colours, without outlines, on a dark ground that is lighter below.
How that is measured leaves room for what encoders do to a clip. On grounds that are nearly black,
the outlines of the suite's shapes cannot be seen, so its videos may pass for clips there.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from videonsa.rendered.clips.scene import COLOURS, SAMPLE_PERIOD, SIZE

LONGEST_SECONDS = 24.0
"""Of the clips that the embedded model was trained on (docs/embedded.md)."""
_MOST_FRAMES = int(LONGEST_SECONDS / SAMPLE_PERIOD)
_PACES = (0.9 * SAMPLE_PERIOD, 1.1 * SAMPLE_PERIOD)
"""Seconds between frames; those of a file stand where its frame rate puts them."""

# Measured on clips as H.264, MPEG-4 and Motion JPEG, and on the suite's videos of 24 seconds.
_TOLERANCE = 24.0  # levels of 255 between a pixel and its plain colour
_MOST_GROUND = 100.0  # level of the ground; clips have 2 to 78
_MOST_OTHER = 0.10  # share of pixels that are neither ground nor shape; clips had at most 0.08
_MOST_OUTLINE = 0.0035  # share of pixels darker than the ground; clips at most 0.003, others 0.01
_LEAST_SHAPE = 0.002  # share of pixels well inside a shape; writing has none
_LUMA = (0.299, 0.587, 0.114)


class ClipLook:
    """Looks at the frames of one video on their way to the model."""

    def __init__(self) -> None:
        self._num_frames = 0
        self._fits = True
        self._shares = torch.zeros(3)

    def watch(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Hand on parts of a video, uint8 `[n, 3, H, W]`."""
        for part in parts:
            self._num_frames += len(part)
            self._fits &= part.shape[-2:] == (SIZE, SIZE) and self._num_frames <= _MOST_FRAMES
            if self._fits:
                ground, shares = _measures(part)
                self._fits = ground <= _MOST_GROUND
                self._shares += shares
            yield part

    def is_clip(self, times: Sequence[float]) -> bool:
        """Whether what was watched, at these seconds, is like a clip of the training set."""
        if not self._fits or len(times) < 2:
            return False
        pace = (times[-1] - times[0]) / (len(times) - 1)
        other, outline, shape = (self._shares / self._num_frames).tolist()
        return (
            _PACES[0] <= pace <= _PACES[1]
            and other <= _MOST_OTHER
            and outline <= _MOST_OUTLINE
            and shape >= _LEAST_SHAPE
        )


def _measures(frames: Tensor) -> tuple[float, Tensor]:
    """The highest level of the ground, and sums over frames of what is shown, as shares.

    Args:
        frames: uint8 `[n, 3, SIZE, SIZE]`.

    Returns:
        The level, and float32 `[3]`: other pixels, outlines, the inside of shapes.
    """
    pixels = frames.cpu().float()
    shade = torch.linspace(0.8, 1.2, SIZE)[:, None]
    # Shapes cover less than half of a frame.
    levels = (pixels / shade).flatten(2).median(2).values  # [n, 3]
    ground = levels[..., None, None] * shade
    other = (pixels - ground).abs().amax(1) > _TOLERANCE  # [n, SIZE, SIZE]
    inside = torch.zeros_like(other)
    for colour in COLOURS.values():
        plain = torch.tensor(colour, dtype=torch.float32)[:, None, None]
        shape = other & ((pixels - plain).abs().amax(1) <= _TOLERANCE)
        other &= ~shape
        # What is left of a shape without a rim of two pixels.
        inside |= max_pool2d((~shape).float()[:, None], 5, stride=1, padding=2)[:, 0] == 0
    luma = torch.tensor(_LUMA)[:, None, None]
    outline = (pixels * luma).sum(1) < 0.7 * (ground * luma).sum(1) - 8
    shares = torch.stack([seen.float().mean((1, 2)).sum() for seen in (other, outline, inside)])
    return float(levels.max()), shares
