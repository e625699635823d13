"""The patterns of a comparison, side by side, as a picture: drawn from its JSON alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videonsa.errors import UsageError

CELL_PIXELS = 288
"""Width of a pattern, about."""
MOST_COLUMNS = 4
_MARGIN, _GAP = 24, 26
_LEFT, _HEAD, _FOOT = 56, 48, 62
"""Around a pattern: labels of its rows, its name, labels of its columns."""
_TITLE, _NOTE = 84, 20
_STRIP, _STRIP_GAP = 7, 5
_LEAST_WIDTH = 860
_INK, _FAINT, _LINE = (28, 30, 36), (92, 96, 106), (168, 172, 180)
_PAPER, _TEXT, _VIDEO = (255, 255, 255), (214, 116, 24), (58, 116, 180)
_RAMP = ((238, 241, 245), (150, 190, 222), (52, 120, 184), (8, 40, 96))
"""From no pair to all; the steps are even in the square root of the share."""
_FEWEST_TICKS = 3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[int, int, int, int]


class Axis(NamedTuple):
    """What the tokens of a prompt are: text, frames, text."""

    tokens: int
    vision: tuple[int, int]
    """First vision token, and the one behind the last."""
    seconds: Sequence[float]
    """Of each frame, or pair of frames, which have equally many tokens."""

    def place(self, frame: int) -> float:
        """Of the first token of a frame, as a share of the prompt."""
        first, end = self.vision
        return (first + (end - first) * frame / len(self.seconds)) / self.tokens

    def ticks(self) -> list[tuple[float, str]]:
        """Shares of the prompt at which round seconds begin, with their labels."""
        span = self.seconds[-1] - self.seconds[0]
        step = _round_step(span / _FEWEST_TICKS)
        found, wanted = [], math.ceil(self.seconds[0] / step - 1e-6)
        for frame, second in enumerate(self.seconds):
            reached = math.floor(second / step + 1e-6)
            if reached >= wanted:
                found.append((self.place(frame), f"{reached * step:g} s"))
                wanted = reached + 1
        return found


def _round_step(most: float) -> float:
    """1, 2 or 5 times a power of 10, at most `most` where that is positive."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (5, 2, 1) if step * power <= most)


def draw_patterns(result: Mapping[str, Any]) -> Image.Image:
    """A picture of all patterns of a comparison.

    Args:
        result: as `compare_methods` gives it, and as JSON keeps it.

    Raises:
        UsageError: it has no pattern.
    """
    shown = [line for line in result["methods"] if line["pattern"] is not None]
    if not shown:
        raise UsageError("no method has a pattern to draw: see the reasons in the table")
    axis = Axis(**result["axis"])
    cells = len(shown[0]["pattern"]["shares"])
    side = cells * max(1, round(CELL_PIXELS / cells))
    columns = min(MOST_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    left_out = [line["name"] for line in result["methods"] if line["pattern"] is None]
    width = 2 * _MARGIN + columns * (_LEFT + side) + (columns - 1) * _GAP
    height = _TITLE + rows * (_HEAD + side + _FOOT) + _MARGIN + _NOTE * bool(left_out)
    image = Image.new("RGB", (max(width, _LEAST_WIDTH), height), _PAPER)
    draw = ImageDraw.Draw(image)
    _draw_title(draw, result, image.width)
    for index, line in enumerate(shown):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (_LEFT + side + _GAP) + _LEFT
        top = _TITLE + row * (_HEAD + side + _FOOT) + _HEAD
        _draw_panel(image, line, axis, (left, top, left + side, top + side))
    if left_out:
        note = f"Without a pattern: {', '.join(left_out)}"
        draw.text((_MARGIN, height - _MARGIN - 4), note, fill=_FAINT, font=_font(13))
    draw.rectangle((0, 0, image.width - 1, height - 1), outline=_LINE)  # an edge on dark pages
    return image


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _draw_title(draw: ImageDraw.ImageDraw, result: Mapping[str, Any], width: int) -> None:
    title = f"What attends to what in layer {result['layer']} of {result['model']}"
    draw.text((_MARGIN, 16), title, fill=_INK, font=_font(19))
    under = "rows: queries, columns: keys, from the first token to the last; means over query heads"
    draw.text((_MARGIN, 44), under, fill=_FAINT, font=_font(13))
    left, top, size = width - _MARGIN - 200, 18, 200
    for column in range(size):
        colour = _colour((column / (size - 1)) ** 2)
        draw.line((left + column, top, left + column, top + 11), fill=colour)
    for share in (0, 5, 25, 50, 100):
        x = left + math.sqrt(share / 100) * (size - 1)
        draw.line((x, top + 12, x, top + 15), fill=_FAINT)
        draw.text((x, top + 17), f"{share}", fill=_FAINT, font=_font(12), anchor="ma")
    label = "% of a cell's causal pairs"
    draw.text((left + size, top + 33), label, fill=_FAINT, font=_font(12), anchor="ra")


def _draw_panel(image: Image.Image, line: Mapping[str, Any], axis: Axis, box: Box) -> None:
    draw, (left, top, right, bottom) = ImageDraw.Draw(image), box
    name = _shortened(draw, line["name"], right - left + _LEFT - 8, _font(15))
    draw.text((left - _LEFT + 8, top - _HEAD + 4), name, fill=_INK, font=_font(15))
    draw.text((left - _LEFT + 8, top - _HEAD + 24), _numbers(line), fill=_FAINT, font=_font(12))
    shares = line["pattern"]["shares"]
    image.paste(_heat(shares).resize((right - left, bottom - top), Image.Resampling.NEAREST), box)
    kept = line["pattern"]["kept"]
    if min(kept) < 1:
        strip = _heat([kept]).resize((right - left, _STRIP), Image.Resampling.NEAREST)
        image.paste(strip, (left, bottom + _STRIP_GAP))
        draw.text(
            (left - 4, bottom + _STRIP_GAP + 3), "kept", fill=_FAINT, font=_font(11), anchor="rm"
        )
    _draw_columns(draw, axis, box)
    _draw_rows(draw, axis, box)


def _numbers(line: Mapping[str, Any]) -> str:
    share = line["attention"]
    parts = [] if share is None else [f"{_percent(share)} of attention"]
    counts = [line["kept_tokens"], *(one["tokens"] for one in line["leaves"])]
    parts += [f"{', then '.join(f'{count:,}' for count in counts)} video tokens"]
    return ", ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _heat(shares: Sequence[Sequence[float | None]]) -> Image.Image:
    """One pixel a cell; what is not causal is paper."""
    pixels = [
        [_PAPER if share is None else _colour(min(max(share, 0.0), 1.0)) for share in row]
        for row in shares
    ]
    return Image.fromarray(np.array(pixels, dtype=np.uint8))


def _colour(share: float) -> tuple[int, int, int]:
    place = math.sqrt(share) * (len(_RAMP) - 1)
    first = min(int(place), len(_RAMP) - 2)
    part = place - first
    low, high = _RAMP[first], _RAMP[first + 1]
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _parts(axis: Axis) -> Iterator[tuple[float, float, tuple[int, int, int]]]:
    """Text, video, text: where each begins and ends, as shares of the prompt, and its colour."""
    first, end = (place / axis.tokens for place in axis.vision)
    yield from ((0.0, first, _TEXT), (first, end, _VIDEO), (end, 1.0, _TEXT))


def _draw_columns(draw: ImageDraw.ImageDraw, axis: Axis, box: Box) -> None:
    """Below a pattern: which columns are text and frames, and the seconds of these."""
    left, _, right, bottom = box
    side, top, small = right - left, bottom + _STRIP + _STRIP_GAP + 3, _font(12)
    for begin, end, colour in _parts(axis):
        x = left + begin * side
        draw.rectangle((x, top, max(left + end * side, x + 2) - 1, top + 3), fill=colour)
    for place, label in axis.ticks():
        x = left + place * side
        draw.line((x, top + 4, x, top + 7), fill=_FAINT)
        draw.text((x, top + 9), label, fill=_FAINT, font=small, anchor="ma")
    draw.text((left, top + 24), "text", fill=_TEXT, font=small)
    draw.text(((left + right) / 2, top + 24), "frames", fill=_VIDEO, font=small, anchor="ma")
    draw.text((right, top + 24), "question", fill=_TEXT, font=small, anchor="ra")


def _draw_rows(draw: ImageDraw.ImageDraw, axis: Axis, box: Box) -> None:
    """Left of a pattern: the same of its rows."""
    left, top, _, bottom = box
    side, right = bottom - top, left - 3
    for begin, end, colour in _parts(axis):
        y = top + begin * side
        draw.rectangle((right - 3, y, right, max(top + end * side, y + 2) - 1), fill=colour)
    for place, label in axis.ticks():
        y = top + place * side
        draw.line((right - 7, y, right - 4, y), fill=_FAINT)
        draw.text((right - 9, y), label, fill=_FAINT, font=_font(12), anchor="rm")


def _shortened(draw: ImageDraw.ImageDraw, text: str, most: float, font: Font) -> str:
    """A text that is not wider than so many pixels."""
    if draw.textlength(text, font=font) <= most:
        return text
    while text and draw.textlength(f"{text}...", font=font) > most:
        text = text[:-1]
    return f"{text}..."
