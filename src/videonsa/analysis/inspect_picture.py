"""A picture of a video along time, and of how much more or less than evenly it was looked at."""

from base64 import b64decode
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videonsa.analysis.inspect_bars import Bars, Floats
from videonsa.analysis.inspection import Inspection, groups

MAX_SLOTS = 24
_SLOT = 64
_ROW = 72
_LABELS = 400
_MARGIN = 16
_INK, _FAINT, _GROUND = (30, 30, 36), (110, 110, 118), (244, 245, 247)
_MORE, _LESS, _EVIDENCE = (194, 80, 10), (28, 98, 184), (204, 233, 224)
_MOST = 3
"""Doublings that a bar can show."""
TITLE = (
    "Where a model looked, as times of what no preference would give (orange more, blue less; "
    "means over layers). Green: the evidence"
)


class TimelineRow(NamedTuple):
    """One row of bars."""

    title: str
    subtitle: str
    times: Floats
    """`[slots]`; NaN where nothing is known."""
    evidence: frozenset[int] = frozenset()
    """Slots with some of it."""


def draw_timeline(inspections: Sequence[Inspection], subtitles: Sequence[str]) -> Image.Image:
    """Draw what questions about the same video looked at, a row each, below its frames.

    What vision tokens selected comes first, once: they do not see the question.

    Args:
        inspections: of one video by one model.
        subtitles: what to say of each below its question.
    """
    first = inspections[0]
    slots = groups(len(first.frames), MAX_SLOTS)
    bars = [Bars.of(one, most=MAX_SLOTS) for one in inspections]
    rows = []
    if bars[0].selection is not None:
        subtitle = "by later video tokens, against a selection at random"
        rows.append(TimelineRow("Selected", subtitle, bars[0].selection.mean))
    for one, bar, subtitle in zip(inspections, bars, subtitles, strict=True):
        shown = set(one.evidence_frames)
        evidence = frozenset(i for i, slot in enumerate(slots) if shown & {*slot})
        rows.append(TimelineRow(one.question, subtitle, bar.attention.mean, evidence))
    return _draw(_pictures(first, slots), [first.frames[slot[0]].start for slot in slots], rows)


def _pictures(inspection: Inspection, slots: Sequence[range]) -> list[Image.Image]:
    """A thumbnail for each slot: that of the group in which its middle lies."""
    of_groups = groups(len(inspection.frames))
    middles = [slot[len(slot) // 2] for slot in slots]
    places = [next(i for i, group in enumerate(of_groups) if middle in group) for middle in middles]
    return [Image.open(BytesIO(b64decode(inspection.thumbnails[place]))) for place in places]


def _draw(
    pictures: Sequence[Image.Image], starts: Sequence[float], rows: Sequence[TimelineRow]
) -> Image.Image:
    strip = _SLOT * pictures[0].height // pictures[0].width
    top, left = _MARGIN + 40, _MARGIN + _LABELS
    width = left + len(pictures) * _SLOT + _MARGIN
    image = Image.new("RGB", (width, top + strip + 28 + len(rows) * _ROW + _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), TITLE, fill=_INK, font=ImageFont.load_default(18))
    small = ImageFont.load_default(14)
    for i, (picture, start) in enumerate(zip(pictures, starts, strict=True)):
        image.paste(picture.resize((_SLOT - 2, strip)), (left + i * _SLOT, top))
        if i % 2 == 0:
            place = (left + i * _SLOT, top + strip + 4)
            draw.text(place, f"{start:.0f} s", fill=_FAINT, font=small)
    for i, row in enumerate(rows):
        _draw_row(draw, row, (left, top + strip + 28 + i * _ROW))
    return image


def _draw_row(draw: ImageDraw.ImageDraw, row: TimelineRow, place: tuple[int, int]) -> None:
    left, top = place
    small, tiny = ImageFont.load_default(14), ImageFont.load_default(11)
    bottom, middle = top + _ROW - 8, top + (_ROW - 8) // 2
    right = left + len(row.times) * _SLOT
    draw.text((_MARGIN, top + 12), row.title, fill=_INK, font=small)
    draw.text((_MARGIN, top + 32), row.subtitle, fill=_FAINT, font=small)
    draw.rectangle((left, top, right - 2, bottom), fill=_GROUND)
    for slot in row.evidence:
        draw.rectangle((left + slot * _SLOT, top, left + (slot + 1) * _SLOT - 2, bottom), _EVIDENCE)
    doublings = np.log2(np.maximum(row.times, 2.0**-_MOST)).clip(-_MOST, _MOST)
    most = max(1, int(np.ceil(np.nanmax(np.abs(doublings)))))
    for y, label in ((top, f"{2**most}x"), (middle - 6, "even"), (bottom - 12, f"1/{2**most}")):
        draw.text((left - 32, y), label, fill=_FAINT, font=tiny)
    for i, value in enumerate(doublings):
        if not np.isnan(value):
            end = middle - round(value / most * (middle - top - 2))
            box = (left + i * _SLOT + 8, min(end, middle), left + (i + 1) * _SLOT - 10)
            draw.rectangle((*box, max(end, middle)), fill=_MORE if value > 0 else _LESS)
    draw.line((left, middle, right - 2, middle), fill=_INK)
