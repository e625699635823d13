"""Lines of the log of a benchmark as samples to show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from videonsa.evals.field.sample_line import LineMessage, LinePart, LineVision, SampleLine
from videonsa.evals.field.sample_log import read_samples
from videonsa.evals.field.scoring.line_scores import LineScore
from videonsa.evals.field.shown import (
    ShownFrames,
    ShownMessage,
    ShownPart,
    ShownSample,
)

Scores = Mapping[str, Sequence[LineScore]]
"""By the text of a key."""
_NUMBERED = ("answer", "correct_choice")
"""Fields of documents that hold what is right; a whole number is that of an option, from 0."""
_TRUTHS = (*_NUMBERED, "correct_answer", "ground_truth")


def field_samples(folder: Path, scores: Scores) -> list[ShownSample]:
    """All samples of a run.

    Raises:
        UsageError: it is no run of a benchmark.
    """
    return [_shown(line, scores.get(line.key.text, ())) for line in read_samples(folder)]


def _shown(line: SampleLine, scores: Sequence[LineScore]) -> ShownSample:
    return ShownSample(
        key=line.key.text,
        task=line.task,
        messages=tuple(map(_message, line.messages)),
        frames=tuple(ShownFrames(source=one.source, seconds=one.seconds) for one in line.vision),
        truth=_truth(line.doc),
        answer=line.answer,
        failure=line.failure,
        scores=tuple(scores),
        facts={name: value for name, value in _facts(line).items() if value},
    )


def _message(message: LineMessage) -> ShownMessage:
    return ShownMessage(role=message.role, parts=tuple(map(_part, message.parts)))


def _part(part: LinePart) -> ShownPart:
    text = part.text
    if part.start is not None or part.end is not None:
        end = "its end" if part.end is None else f"{part.end:g} s"
        text += f" from {part.start or 0:g} s to {end}"
    return ShownPart(kind=part.kind, text=text)


def _truth(doc: Mapping[str, Any]) -> str | None:
    name = next((name for name in _TRUTHS if name in doc), None)
    if name is None:
        return None
    value = doc[name]
    if name in _NUMBERED and type(value) is int and 0 <= value < len(ascii_uppercase):
        return f"{ascii_uppercase[value]} (option {value})"
    return str(value)


def _facts(line: SampleLine) -> dict[str, str]:
    """What else a line holds, in words; empty where it holds nothing."""
    density = "" if line.density is None else f", {line.density:.3g} of dense attention"
    options = line.method_parameters or {}
    method = ", ".join([line.method, *(f"{name} {value}" for name, value in options.items())])
    weighed = line.log_probability
    return {
        "vision": "; ".join(map(_vision, line.vision)),
        "tokens": _tokens(line),
        "prompt ids": line.prompt_sha256 or "",
        "method": method + density,
        "generation": ", ".join(f"{name} {value}" for name, value in line.generation.items()),
        "finish": "" if line.finish is None else f"{line.finish} after {line.new_tokens} tokens",
        "likelihood": "" if weighed is None else f"{weighed:.4f}, greedy {line.is_greedy}",
        "document": ", ".join(f"{name} {value}" for name, value in line.doc.items()),
        "notes": "; ".join(line.notes),
        "seconds": f"{line.seconds:.2f}",
    }


def _vision(vision: LineVision) -> str:
    kept = (
        "" if vision.read_tokens == vision.tokens else f", of which {vision.read_tokens} are read"
    )
    told = (
        f"{vision.source}: {vision.width}x{vision.height}, grid "
        f"{' x '.join(map(str, vision.grid))}, {vision.tokens} tokens{kept}"
    )
    if vision.timestamps != vision.seconds:
        first, last = vision.timestamps[0], vision.timestamps[-1]
        told += f", told to the model as {first:g} to {last:g} s"
    return told


def _tokens(line: SampleLine) -> str:
    if line.prompt_tokens is None:
        return ""
    told = f"{line.video_tokens or 0:,} of images and videos in a prompt of {line.prompt_tokens:,}"
    if line.cached_tokens:
        told += f", {line.cached_tokens:,} of them read for an earlier question"
    return told
