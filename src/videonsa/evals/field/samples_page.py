"""`samples_page`: samples of a run as one HTML page that needs nothing beside itself."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

from videonsa.evals.field.frame_pictures import FramePicture, Pictures
from videonsa.evals.field.scoring.line_scores import LineScore
from videonsa.evals.field.shown import (
    ShownFrames,
    ShownMessage,
    ShownSample,
    counted,
    parse_text,
    seconds_text,
)
from videonsa.webpage import fill

_TEMPLATE = "samples_page.html"
_LONG = 800
"""Characters from which a text may be higher than it is shown."""


def samples_page(
    samples: Sequence[ShownSample],
    *,
    title: str,
    notes: Sequence[str] = (),
    pictures: Pictures | None = None,
) -> str:
    """The page.

    Args:
        samples: in the order in which they are shown.
        title: of the page.
        notes: what holds for all of them, a line each.
        pictures: of their frames; None shows none.
    """
    pictures = pictures or Pictures()
    strips = {
        frames: _Strip(f"v{number}", of_frames)
        for number, (frames, of_frames) in enumerate(pictures.of.items())
        if of_frames
    }
    given = {
        "title": escape(title),
        "pictures": "".join(strip.rules() for strip in strips.values()),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "verdicts": _options(counted(samples)),
        "tasks": _options(dict.fromkeys(one.task for one in samples)),
        "samples": "".join(
            _article(number, sample, strips) for number, sample in enumerate(samples, start=1)
        ),
    }
    return fill(files("videonsa.evals.field").joinpath(_TEMPLATE).read_text("utf-8"), given)


def _options(values: Iterable[str]) -> str:
    return "".join(f"<option>{escape(value)}</option>" for value in values)


class _Strip(NamedTuple):
    """Pictures of frames; they stand in the style, once, however many samples show them."""

    name: str
    pictures: Sequence[FramePicture]

    def rules(self) -> str:
        """Their part of the style."""
        return "".join(
            f".{self.name}-{number} {{ aspect-ratio: {picture.ratio:.4f}; "
            f"background-image: url(data:image/jpeg;base64,{picture.jpeg}); }}\n"
            for number, picture in enumerate(self.pictures)
        )

    def html(self, label: str) -> str:
        """Where they are shown."""
        items = "".join(
            f'<li><span class="picture {self.name}-{number}" role="img" '
            f'aria-label="Frame at {picture.seconds:.2f} s"></span>{picture.seconds:.2f} s</li>'
            for number, picture in enumerate(self.pictures)
        )
        return f'<ul class="strip" tabindex="0" role="list" aria-label="{label}">{items}</ul>'


def _article(number: int, sample: ShownSample, strips: Mapping[ShownFrames, _Strip]) -> str:
    verdict = escape(sample.verdict)
    messages = "".join(map(_message, sample.messages))
    seen = "".join(_frames(frames, strips.get(frames)) for frames in sample.frames)
    said = [("failure", "Failed", sample.failure), ("answer", "Answer", sample.answer)]
    said.append(("truth", "Truth", sample.truth))
    told = "".join(_said(kind, name, text) for kind, name, text in said if text is not None)
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in sample.facts.items()
    )
    details = f"<details><summary>More</summary><dl>{facts}</dl></details>" if facts else ""
    return (
        f'<article tabindex="-1" id="sample-{number}" aria-labelledby="title-{number}" '
        f'data-verdict="{verdict}" data-task="{escape(sample.task)}">'
        f'<header class="of"><h2 id="title-{number}">{escape(sample.key)}</h2>'
        f'<span class="verdict {verdict}">{verdict}</span></header>'
        f"{messages}{seen}{told}{_scores(sample.scores)}{details}</article>\n"
    )


def _message(message: ShownMessage) -> str:
    parts = "".join(
        escape(part.text)
        if part.kind == "text"
        else f'<span class="medium">[{escape(part.kind)} {escape(part.text)}] </span>'
        for part in message.parts
    )
    return _block("", message.role, parts)


def _said(kind: str, name: str, text: str) -> str:
    return _block(kind, name, escape(text) or "<em>empty</em>")


def _block(kind: str, name: str, inside: str) -> str:
    # A long text scrolls, also by keys.
    scrolls = ' tabindex="0"' if len(inside) > _LONG else ""
    named = escape(name)
    return (
        f'<div class="said {kind}"><b>{named}</b>'
        f'<div class="text" role="group" aria-label="{named}"{scrolls}>{inside}</div></div>'
    )


def _frames(frames: ShownFrames, strip: _Strip | None) -> str:
    told = f"{frames.source}: {seconds_text(frames.seconds)}"
    pictures = "" if strip is None else strip.html(escape(f"Frames of {frames.source}"))
    return f'<p class="medium">{escape(told)}</p>{pictures}'


def _scores(scores: Sequence[LineScore]) -> str:
    if not scores:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(one.scoring)}</th>'
        f"<td>{'none' if one.value is None else f'{one.value:.4g}'}</td>"
        f"<td>{escape(one.note or parse_text(one))}</td></tr>"
        for one in scores
    )
    names = ("Scoring", "Score", "Read in the answer")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
