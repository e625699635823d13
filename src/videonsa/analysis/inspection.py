"""`ask_and_inspect`: where a model looked for one answer, beside what no preference would give."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.machine import evaluation_facts
from videonsa.models.methods import Attended
from videonsa.models.recorder.frames import FrameSelection, TextMass
from videonsa.models.recorder.gates import FrameGates
from videonsa.models.recorder.protocol import Recorder, Recorders
from videonsa.models.step import StepTokens
from videonsa.ops.spec import BRANCHES
from videonsa.parsing import one_line, read_json_object, typed
from videonsa.webpage import thumbnail

if TYPE_CHECKING:
    from videonsa.inference.answer import Answer
    from videonsa.inference.engine import VideoQA
    from videonsa.video.decode import VideoClip

FORMAT, VERSION = "videonsa.inspection", 1
MOST_BARS = 96
"""Of a page; a longer video has several frames a bar."""
THUMBNAIL = 128
"""Pixels of the longer side."""
DIGITS = 5
"""That are kept of a number."""
DENSE_ROW = (
    "the method read the prompt sparsely: for the answer's first token, what is shown is where it "
    "would attend to by dense attention"
)

ABLATED = "the {} branch is ablated: what is shown of it is read by nothing"

Rows = tuple[tuple[float, ...], ...]
"""`[layers, F]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownFrame:
    """A temporal patch, or an image: what the model reads as one frame."""

    start: float
    """Seconds of its first sampled frame."""
    end: float
    """Seconds of its last."""
    tokens: int
    """That the first layer has of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """How often the vision tokens of later frames selected each frame."""

    frequency: Rows
    """Share of (token, KV head) pairs."""
    uniform: Rows
    """What a selection at random of as many blocks gives, forced blocks included."""
    later_tokens: tuple[int, ...]
    """Vision tokens of later frames: who could have selected it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """Where a model looked for one answer, layer by layer and frame by frame."""

    video: str
    question: str
    answer: str
    model: str
    method: str
    parameters: dict[str, Any] | None
    """Of the method."""
    size: tuple[int, int]
    """Width and height of the frames as they were read."""
    num_sampled: int
    """Frames that were sampled; a temporal patch has several."""
    prompt_tokens: int
    answer_tokens: int
    """Rows whose attention is counted: the one that gives the first token, and each fed back."""
    frames: tuple[ShownFrame, ...]
    attention: Rows
    """Of the answer's tokens to each frame: a mean over them and the query heads."""
    even: Rows
    """What attention spread evenly over all tokens that they see gives."""
    selection: Selection | None
    """None where nothing was selected."""
    gates: tuple[tuple[tuple[float, ...], ...], ...] | None
    """`[layers, F, 3]`, means over the vision tokens; None without gates."""
    thumbnails: tuple[str, ...]
    """JPEG in base64, one for each of the `groups` of at most MOST_BARS."""
    evidence: tuple[tuple[float, float], ...]
    """Seconds [start, end) in which the answer is known to be seen; empty where it is not."""
    notes: tuple[str, ...]
    machine: dict[str, Any]
    seconds: float
    """That reading, answering and recording took."""

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return len(self.attention)

    @property
    def evidence_frames(self) -> tuple[int, ...]:
        """Frames that show some of the evidence."""
        return tuple(
            place
            for place, one in enumerate(self.frames)
            if any(one.start < end and one.end >= start for start, end in self.evidence)
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return {"format": FORMAT, "version": VERSION, **content}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """From what `to_json` gave.

        Raises:
            UsageError: another format or version, or damaged.
        """
        fields = dict(content)
        found = fields.pop("format", None), fields.pop("version", None)
        if found != (FORMAT, VERSION):
            raise UsageError(
                f"format {found[0]!r}, version {found[1]!r}: want {FORMAT!r}, version {VERSION}; "
                "inspect the video again"
            )
        try:
            read: Self = typed(cls, fields)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"the inspection cannot be read ({one_line(error)}): inspect the video again"
            ) from error
        return read

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_atomic(path, json.dumps(self.to_json(), allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file that `write` wrote.

        Raises:
            UsageError: not there, or no such file.
        """
        return cls.from_json(read_json_object(path))


def groups(num_frames: int, most: int = MOST_BARS) -> list[range]:
    """Consecutive frames in at most so many groups, whose sizes differ by at most one."""
    count = min(num_frames, most)
    borders = [num_frames * place // count for place in range(count + 1)] if count else [0]
    return [range(first, last) for first, last in pairwise(borders)]


class _Remarks(Recorder):
    """What has to be said of how the method attended."""

    def __init__(self) -> None:
        self._found: set[str] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        """A line each."""
        return tuple(sorted(self._found))

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """See `Recorder`."""
        if attended.lists is not None:
            self._found.add(DENSE_ROW)
        if attended.spec is not None:
            off = [name for name in BRANCHES if name not in attended.spec.branches]
            self._found |= {ABLATED.format(name) for name in off}


class _FirstFrames(Recorder):
    """Vision tokens of each frame, as the first layer has them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def begin_step(self, tokens: StepTokens) -> None:
        """See `Recorder`; steps behind layers after which tokens left have fewer."""
        sizes = tokens.frame_sizes()
        if sum(sizes) > sum(self.sizes):
            self.sizes = list(sizes)


class Looks:
    """Watches one answer, and tells where the model looked for it."""

    def __init__(self) -> None:
        self._text, self._selection, self._gates = TextMass(), FrameSelection(), FrameGates()
        self._sizes, self._remarks = _FirstFrames(), _Remarks()
        self.recorder = Recorders(
            self._text, self._selection, self._gates, self._sizes, self._remarks
        )

    def inspection(
        self,
        answer: "Answer",
        *,
        video: str,
        question: str,
        thumbnails: Sequence[str],
        evidence: Sequence[tuple[float, float]] = (),
        machine: dict[str, Any],
        seconds: float,
    ) -> Inspection:
        """What was recorded of an answer about one video.

        Selection and gates are None where the video was read before, without the recorder.

        Args:
            answer: the answer.
            video: its name, for the reader.
            question: what was asked.
            thumbnails: one for each of the `groups` of frames; none: pictures stay empty.
            evidence: seconds [start, end) in which the answer is seen, where that is known.
            machine: facts about it.
            seconds: that it took.

        Raises:
            UsageError: an answer without a token, or about several videos.
        """
        usage, mass, means = answer.usage, self._text.text_mass(), self._gates.means()
        if usage.joined:
            raise UsageError(
                f"{1 + len(usage.joined)} videos and images: where a model looked is told of one"
            )
        if not mass.shape[1]:
            raise UsageError("the answer has no token: nothing can be told of where it looked")
        frames = _frames(usage.times, self._sizes.sizes)
        return Inspection(
            video=video,
            question=question,
            answer=answer.text,
            model=usage.model,
            method=usage.attention,
            parameters=json.loads(json.dumps(usage.spec)),
            size=(usage.width, usage.height),
            num_sampled=usage.num_frames,
            prompt_tokens=usage.prompt_tokens,
            answer_tokens=mass.shape[1],
            frames=frames,
            attention=rows_of(mass.mean(1)),
            even=rows_of(self._text.even_mass().mean(1)),
            selection=_selection(self._selection, self._sizes.sizes),
            gates=tuple(map(rows_of, means)) if len(means) else None,
            thumbnails=tuple(thumbnails) or ("",) * len(groups(len(frames))),
            evidence=tuple((float(start), float(end)) for start, end in evidence),
            notes=(*usage.notes, *usage.warnings, *self._remarks.notes),
            machine=machine,
            seconds=round(seconds, 2),
        )

    @property
    def num_frames(self) -> int:
        """Temporal patches and images that the model has read."""
        return len(self._sizes.sizes)


def ask_and_inspect(
    qa: "VideoQA",
    clip: "VideoClip",
    question: str,
    *,
    video: str,
    evidence: Sequence[tuple[float, float]] = (),
    **options: Any,
) -> "tuple[Answer, Inspection]":
    """Ask a question about a clip, and record where the model looked.

    Args:
        qa: the model.
        clip: the sampled frames.
        question: what to ask.
        video: its name, for the reader.
        evidence: seconds [start, end) in which the answer is seen, where that is known.
        options: of `VideoQA.ask`: how it answers, never what it reads.
    """
    begin, looks = time.perf_counter(), Looks()
    answer = qa.ask(clip, question, recorder=looks.recorder, **options)
    look = looks.inspection(
        answer,
        video=video,
        question=question,
        thumbnails=tuple(thumbnails(clip.frames, looks.num_frames)),
        evidence=evidence,
        machine=evaluation_facts(qa.model.device),
        seconds=time.perf_counter() - begin,
    )
    return answer, look


def rows_of(values: Tensor) -> Rows:
    """`[layers, F]` as JSON keeps it."""
    return tuple(tuple(float(f"{one:.{DIGITS}g}") for one in row) for row in values.tolist())


def _frames(times: Sequence[float], sizes: Sequence[int]) -> tuple[ShownFrame, ...]:
    """The temporal patches of sampled frames; the last may lack a frame."""
    step = -(-len(times) // len(sizes))
    parts = [times[first : first + step] for first in range(0, len(times), step)]
    return tuple(
        ShownFrame(start=part[0], end=part[-1], tokens=size)
        for part, size in zip(parts, sizes, strict=True)
    )


def _selection(recorder: FrameSelection, sizes: Sequence[int]) -> Selection | None:
    frequency = recorder.selection_frequency()
    if not len(frequency):
        return None
    later = sum(sizes) - torch.tensor(sizes).cumsum(0)
    return Selection(
        frequency=rows_of(frequency),
        uniform=rows_of(recorder.uniform_frequency()),
        later_tokens=tuple(later.tolist()),
    )


def thumbnails(frames: Tensor, num_frames: int) -> Iterator[str]:
    """A small picture of each group: of its sampled frames the one least like the whole clip.

    Args:
        frames: uint8 `[N, 3, H, W]`.
        num_frames: F, temporal patches or images.
    """
    step = -(-len(frames) // num_frames)
    mean = torch.stack([frame.float() for frame in frames[:: -(-len(frames) // 64)]]).mean(0)
    for group in groups(num_frames):
        part = frames[step * group.start : step * group.stop]
        unlike = torch.stack([(frame - mean).abs().mean() for frame in part])
        yield thumbnail(part[int(unlike.argmax())].numpy(), longest=THUMBNAIL)
