"""A picture of a video along time, and of how much each part of it was looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MAX_SLOTS = 24
_SLOT = 64
_ROW = 64
_LABELS = 370
_MARGIN = 16
_INK, _FAINT = (30, 30, 36), (120, 120, 128)
_COLOURS = {"answer": (214, 84, 36), "selected": (44, 102, 178)}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """One row of bars: `values` is float [P], one a temporal patch, of any scale."""

    title: str
    subtitle: str
    values: Tensor
    colour: Literal["answer", "selected"] = "answer"


def pool_slots(values: Tensor, slots: int) -> Tensor:
    """Sum of the values of each slot of time: [P] -> [slots]. Slots differ by at most one patch."""
    return torch.stack([part.sum() for part in values.double().tensor_split(slots)])


def telling_frames(frames: Tensor, slots: int) -> list[Tensor]:
    """The frame of each slot that differs most from the clip's mean: uint8 [3, H, W] each."""
    mean = frames.float().mean(0)
    difference = torch.stack([(frame.float() - mean).abs().mean() for frame in frames])
    parts = torch.arange(len(frames)).tensor_split(slots)
    return [frames[part[difference[part].argmax()]] for part in parts]


def draw_timeline(
    frames: Tensor, times: Sequence[float], rows: Sequence[TimelineRow], *, title: str
) -> Image.Image:
    """Draw frames (uint8 [N, 3, H, W] at `times` seconds) above rows of bars, one bar a slot.

    The bars of a row are scaled to its largest.
    """
    slots = min(MAX_SLOTS, -(-len(frames) // 2))
    width = _LABELS + slots * _SLOT + 2 * _MARGIN
    top = _MARGIN + 40
    strip = _SLOT * frames.shape[2] // frames.shape[3]
    height = top + strip + 24 + len(rows) * _ROW + _MARGIN
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(14), ImageFont.load_default(20)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=large)
    left = _MARGIN + _LABELS
    for i, frame in enumerate(telling_frames(frames, slots)):
        thumbnail = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((_SLOT - 2, strip))
        image.paste(thumbnail, (left + i * _SLOT, top))
    starts = [times[int(part[0])] for part in torch.arange(len(frames)).tensor_split(slots)]
    for i in range(0, slots, 2):
        place = (left + i * _SLOT, top + strip + 4)
        draw.text(place, f"{starts[i]:.0f} s", fill=_FAINT, font=small)
    for i, row in enumerate(rows):
        _draw_row(draw, row, top + strip + 24 + i * _ROW, slots, small)
    return image


def _draw_row(
    draw: ImageDraw.ImageDraw, row: TimelineRow, top: int, slots: int, font: Font
) -> None:
    draw.text((_MARGIN, top + 18), row.title, fill=_INK, font=font)
    draw.text((_MARGIN, top + 38), row.subtitle, fill=_FAINT, font=font)
    bottom, left = top + _ROW - 6, _MARGIN + _LABELS
    draw.line((left, bottom, left + slots * _SLOT, bottom), fill=(210, 210, 214))
    pooled = pool_slots(row.values, slots)
    heights = pooled / pooled.max().clamp_min(1e-12) * (_ROW - 16)
    for i, bar in enumerate(heights.tolist()):
        x = left + i * _SLOT
        box = (x + 8, bottom - max(bar, 1), x + _SLOT - 10, bottom)
        draw.rectangle(box, fill=_COLOURS[row.colour])
