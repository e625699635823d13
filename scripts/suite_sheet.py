"""Draws a contact sheet of the suite: a row a kind, the evidence in three frames a difficulty."""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from videonsa.rendered.suite import (
    DIFFICULTIES,
    Script,
    SuiteQuestion,
    SuiteSpec,
    make_script,
    questions_of,
    render_frames,
    suite_seed,
)

_FRAMES = 3
_GAP = 4
_TITLE = 18


def _picture(script: Script, question: SuiteQuestion) -> Image.Image:
    """Frames from the places of the evidence; around it or between, where they are fewer."""
    places = question.evidence
    if len(places) == 1:
        start, end = places[0]
        times = [start - 1 / script.fps, start, end]
        if end - start > 1:
            times = [start + (end - start) * (i + 0.5) / _FRAMES for i in range(_FRAMES)]
    else:
        times = [(start + end) / 2 for start, end in places]
        times = [times[0], times[1] if len(times) > 2 else sum(times) / 2, times[-1]]
    last = script.num_frames - 1
    frames = [min(max(int(time * script.fps), 0), last) for time in times]
    images = [render_frames(script, frame, frame + 1)[0] for frame in frames]
    return Image.fromarray(torch.cat(images, dim=2).permute(1, 2, 0).contiguous().numpy())


def sheet(*, size: int, num_frames: int, index: int) -> Image.Image:
    """The contact sheet of one video at every difficulty."""
    scripts = [
        make_script(
            suite_seed("test", index),
            spec=SuiteSpec(num_frames=num_frames, frame_size=size, difficulty=difficulty),
        )
        for difficulty in DIFFICULTIES
    ]
    width = (_FRAMES * size + _GAP) * len(scripts)
    rows = list(zip(*(questions_of(script) for script in scripts), strict=True))
    picture = Image.new("RGB", (width, _TITLE + len(rows) * (size + _TITLE)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for column, difficulty in enumerate(DIFFICULTIES):
        left = column * (_FRAMES * size + _GAP)
        draw.text((left + 2, 2), difficulty, fill="grey", font=font)
    for i, row in enumerate(rows):
        top = _TITLE + i * (size + _TITLE)
        title = f"{row[0].kind}: {row[0].text} {row[0].answer}"
        draw.text((2, top + 2), title, fill="black", font=font)
        for column, (script, question) in enumerate(zip(scripts, row, strict=True)):
            left = column * (_FRAMES * size + _GAP)
            picture.paste(_picture(script, question), (left, top + _TITLE))
    return picture


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/suite.png"))
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--index", type=int, default=3)
    args = parser.parse_args()
    picture = sheet(size=args.size, num_frames=args.frames, index=args.index)
    # A palette without dithering: the noise of the frames would fill a megabyte.
    palette = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
