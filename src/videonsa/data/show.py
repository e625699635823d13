"""One sample as it is trained on: its frames on a sheet, its tokens, and which carry loss."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from videonsa.data.media import Frames
from videonsa.video.chat import IGNORED_LABEL

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SHEET_WIDTH = 1400
_CELL = 168
"""Pixels that a frame is at least wide on a sheet."""
_LINE = 14
_GAP = 4
_PADS = ("<|video_pad|>", "<|image_pad|>")


class Decoder(Protocol):
    """What showing needs of a tokenizer; every Hugging Face tokenizer has it."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Give the text of ids."""

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """Give the id of a token."""


class Span(NamedTuple):
    """Tokens that stand together and either all carry loss or none does."""

    text: str
    """Their text; the same token again and again is there once."""
    num_tokens: int
    learned: bool
    repeats: int = 1


def spans_of(ids: Sequence[int], labels: Sequence[int], tokenizer: Decoder) -> list[Span]:
    """The tokens of a sample as text, a vision run as one span."""
    pads = {tokenizer.convert_tokens_to_ids(pad) for pad in _PADS}
    pairs = zip(ids, labels, strict=True)
    spans = []
    for (learned, pad), group in groupby(
        pairs, key=lambda pair: (pair[1] != IGNORED_LABEL, pair[0] if pair[0] in pads else None)
    ):
        run = [token for token, _ in group]
        shown = run if pad is None else run[:1]
        text = tokenizer.decode(shown, skip_special_tokens=False)
        spans.append(Span(text, len(run), learned, 1 if pad is None else len(run)))
    return spans


def marked_text(spans: Sequence[Span], *, colour: bool) -> str:
    """Spans as one text; what carries loss is green, or stands in [[ ]] without colour."""
    begin, end = ("\x1b[1;32m", "\x1b[0m") if colour else ("[[", "]]")
    return "".join(
        f"{begin}{span.text}{end}"
        if span.learned
        else span.text + (f" x {span.repeats}" if span.repeats > 1 else "")
        for span in spans
    )


def contact_sheet(
    videos: Sequence[tuple[str, Frames]], *, most_frames: int, width: int = SHEET_WIDTH
) -> "Picture":
    """Frames of videos on one picture, each with its number and its time.

    Args:
        videos: a line above each, and its frames.
        most_frames: of a video; of more, so many are shown, evenly spread.
        width: of the sheet, pixels.

    """
    blocks = [_block(title, frames, most_frames, width) for title, frames in videos]
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _block(title: str, frames: Frames, most_frames: int, width: int) -> "Picture":
    cells = list(_cells(frames, most_frames))
    across, down = cells[0][1].size
    across, down = across + _GAP, down + _LINE + _GAP
    columns = max(1, (width - _GAP) // across)
    rows = -(-len(cells) // columns)
    height = 2 * _LINE + rows * down + _GAP
    block = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(block)
    draw.text((_GAP, _GAP), title, fill="black")
    for place, (caption, picture) in enumerate(cells):
        left = _GAP + place % columns * across
        top = 2 * _LINE + place // columns * down
        draw.text((left, top), caption, fill="black")
        block.paste(picture, (left, top + _LINE))
    return block


def _cells(frames: Frames, most: int) -> Iterator[tuple[str, "Picture"]]:
    count = len(frames.pixels)
    chosen = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    for index in chosen:
        picture = Image.fromarray(_upright(frames.pixels[index]))
        if picture.width < _CELL:
            scale = -(-_CELL // picture.width)
            size = (picture.width * scale, picture.height * scale)
            picture = picture.resize(size, Image.Resampling.NEAREST)
        yield f"{index}: {frames.times[index]:.2f} s", picture


def _upright(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[3, H, W] to [H, W, 3]."""
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
