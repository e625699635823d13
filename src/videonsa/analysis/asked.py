"""What is asked: so many rendered videos of each task, or one video and one question.

A task is a group of videos that show one kind of thing. Vision tokens never see a question, so
their gates and selections can differ between tasks only because the videos do: of the suites a task
is one kind of question, and its videos show what that kind needs and nothing else.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, Unpack

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.inference.context import EncodedVision
from videonsa.inference.demonstration import DEMONSTRATION
from videonsa.models.methods import AttentionMethod
from videonsa.planning.defaults import SamplingChanges
from videonsa.rendered import clips
from videonsa.rendered.suite import (
    Script,
    frames_for_tokens,
    iter_frames,
    questions_of,
    suite_seed,
)
from videonsa.rendered.suites import KINDS, SPECS, script_from

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA

CLIPS = "clips"
SUITES = (CLIPS, "1", "2")
"""`clips` are those that the embedded model was trained on; they show all their kinds at once."""
DEFAULT_KINDS = {
    "1": ("needle", "order", "count", "direction"),
    "2": ("needle", "order", "count", "identity", "state", "scenes"),
}
"""A task each: some that one frame answers, and some that take several steps."""
CLIP_PATCHES = (clips.TOKENS_PER_PATCH, 24)
"""Tokens of a second of a clip, and the seconds that the embedded model was trained on."""
_SHORTEST_CLIP = 8
"""Seconds; a still has no flash and nothing moves in it."""
_FRAMES_PER_CHUNK = 64


class AskedQuestion(NamedTuple):
    """A question about a video."""

    kind: str
    text: str
    answer: str | None = None
    """The one right answer; None where it is not known."""
    options: tuple[str, ...] = ()
    """What a guesser chooses from; empty where a free answer is written."""
    evidence: tuple[tuple[float, float], ...] = ()
    """Seconds [start, end) in which the answer is seen."""

    @property
    def chance(self) -> float | None:
        """Of a guesser; None where there are no options."""
        return 1 / len(self.options) if self.options else None


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedVideo:
    """A video, and what is asked about it."""

    task: str
    number: int
    """Among the videos of all tasks."""
    questions: tuple[AskedQuestion, ...]
    encode: Callable[["VideoQA", AttentionMethod | None], EncodedVision] = field(repr=False)
    """The features of its frames, for the model's own method (None) or another."""
    frame_seconds: float = 1.0
    """Of a temporal patch, where they are alike: evidence is in seconds."""


class Asked(Protocol):
    """What a measurement is about."""

    def videos(self) -> list[AskedVideo]:
        """All of them, the tasks in turn."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""

    def notes(self, qa: "VideoQA") -> tuple[str, ...]:
        """What has to be said of it beside what a model answers."""


@dataclass(frozen=True, kw_only=True)
class AskedSuite:
    """Rendered videos with questions whose answers are known."""

    suite: str = "2"
    kinds: tuple[str, ...] = ()
    """Of question, a task each; empty: `DEFAULT_KINDS`. Clips show all kinds, as one task."""
    videos_per_task: int = 4
    tokens: int = 1024
    """Of a video, at most."""
    frame_size: int = 112
    """Pixels a side; clips have 112."""
    difficulty: str = "easy"
    seed: int = 0
    """Number of the first video in the test split."""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked: UsageError."""
        if self.suite not in SUITES:
            raise UsageError(f"suite={self.suite!r}: want one of {', '.join(SUITES)}")
        if not self.kinds:
            object.__setattr__(self, "kinds", self._default_kinds())
        known = clips.KINDS if self.suite == CLIPS else KINDS[int(self.suite)]
        if unknown := sorted({*self.kinds} - {*known}):
            raise UsageError(f"kinds {', '.join(unknown)}: want some of {', '.join(known)}")
        if self.videos_per_task < 1 or self.seed < 0:
            raise UsageError(
                f"videos_per_task={self.videos_per_task}, seed={self.seed}: want at least 1 video, "
                "and a seed of 0 or more"
            )
        if self.suite == CLIPS and self.num_frames < 2 * _SHORTEST_CLIP:
            raise UsageError(
                f"tokens={self.tokens}: want at least {_SHORTEST_CLIP * CLIP_PATCHES[0]} of a clip"
            )
        self.num_frames  # noqa: B018  # refuses lengths

    def _default_kinds(self) -> tuple[str, ...]:
        return clips.KINDS if self.suite == CLIPS else DEFAULT_KINDS[self.suite]

    @property
    def num_frames(self) -> int:
        """Of a video, at two a second."""
        if self.suite == CLIPS:
            return 2 * max(1, self.tokens // CLIP_PATCHES[0])
        return frames_for_tokens(self.tokens, frame_size=self.frame_size)

    def with_changes(self, **changes: Any) -> Self:
        """The same questions about other videos: longer ones, or of larger frames."""
        return replace(self, **changes)

    def videos(self) -> list[AskedVideo]:
        """See `Asked`; no two videos share a seed."""
        if self.suite == CLIPS:
            return [self._clip(number) for number in range(self.videos_per_task)]
        return [
            self._script(place * self.videos_per_task + number, kind)
            for number in range(self.videos_per_task)
            for place, kind in enumerate(self.kinds)
        ]

    def to_dict(self) -> dict[str, Any]:
        """See `Asked`."""
        return asdict(self) | {"num_frames": self.num_frames}

    def notes(self, qa: "VideoQA") -> tuple[str, ...]:
        """See `Asked`."""
        return (DEMONSTRATION,) if qa.demonstration and self.suite != CLIPS else ()

    def _clip(self, number: int) -> AskedVideo:
        clip = clips.Clip(
            seed=clips.scene_seed("test", self.seed + number),
            patches=self.num_frames // 2,
            phase=0.0,
        )
        scene = clip.scene
        flash = ((scene.flash.start, scene.flash.end),)
        asked = (clips.ask_about(scene, kind) for kind in self.kinds)
        questions = tuple(
            AskedQuestion(
                one.kind,
                one.text,
                one.answer,
                one.options,
                flash if one.kind in ("flash", "when") else (),
            )
            for one in asked
            if one is not None
        )

        def encode(qa: "VideoQA", method: AttentionMethod | None) -> EncodedVision:
            return encode_frames(qa, clip.render().split(_FRAMES_PER_CHUNK), method=method)

        return AskedVideo(task=CLIPS, number=number, questions=questions, encode=encode)

    def _script(self, number: int, kind: str) -> AskedVideo:
        spec = SPECS[int(self.suite)](
            num_frames=self.num_frames,
            frame_size=self.frame_size,
            difficulty=self.difficulty,
            kinds=(kind,),
        )
        script = script_from(suite_seed("test", self.seed + number), spec=spec)
        questions = tuple(
            AskedQuestion(one.kind, one.text, one.answer, tuple(one.options), tuple(one.evidence))
            for one in questions_of(script)
        )
        return AskedVideo(
            task=kind, number=number, questions=questions, encode=_encode_script(script)
        )


@dataclass(frozen=True, kw_only=True)
class AskedFile:
    """A video of one's own and one question, whose answer is not known."""

    video: Any
    """As `VideoQA.ask` takes it."""
    question: str
    changes: SamplingChanges = field(default_factory=SamplingChanges)
    """Of the model's own sampling."""

    def videos(self) -> list[AskedVideo]:
        """See `Asked`."""

        def encode(qa: "VideoQA", method: AttentionMethod | None) -> EncodedVision:
            clip = _encode_file(qa, self.video, method, **self.changes)
            return clip

        question = AskedQuestion("video", self.question)
        return [AskedVideo(task="video", number=0, questions=(question,), encode=encode)]

    def to_dict(self) -> dict[str, Any]:
        """See `Asked`."""
        return {"video": str(self.video), "question": self.question, "sampling": {**self.changes}}

    def notes(self, qa: "VideoQA") -> tuple[str, ...]:
        """See `Asked`."""
        alone = "one video: nothing is said of others, and there are no intervals"
        return (DEMONSTRATION, alone) if qa.demonstration else (alone,)


@dataclass(frozen=True, kw_only=True)
class AskedNothing:
    """For what is measured without a video."""

    def videos(self) -> list[AskedVideo]:
        """See `Asked`."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """See `Asked`."""
        return {}

    def notes(self, qa: "VideoQA") -> tuple[str, ...]:
        """See `Asked`."""
        return ()


def encode_frames(
    qa: "VideoQA", chunks: Iterable[Tensor], *, method: AttentionMethod | None = None
) -> EncodedVision:
    """The features of frames at two a second, uint8 `[n, 3, S, S]` at a time, n even."""
    shape = qa.shape.vision
    count, size = 0, (0, 0)

    def counted() -> Iterator[Tensor]:
        nonlocal count, size
        for frames in chunks:
            count += len(frames)
            size = frames.shape[2] // shape.patch_size, frames.shape[3] // shape.patch_size
            yield frames

    with torch.inference_mode():
        kept = qa.model.encode_kept(counted(), method=method)
    patches = math.ceil(count / shape.temporal_patch_size)
    seconds = tuple(float(index) for index in range(patches))
    return EncodedVision("video", kept.features, (patches, *size), seconds, kept.places)


def _encode_script(script: Script) -> Callable[["VideoQA", AttentionMethod | None], EncodedVision]:
    def encode(qa: "VideoQA", method: AttentionMethod | None) -> EncodedVision:
        chunks = iter_frames(script, chunk=_FRAMES_PER_CHUNK, device=qa.model.device)
        return encode_frames(qa, chunks, method=method)

    return encode


def _encode_file(
    qa: "VideoQA",
    video: Any,
    method: AttentionMethod | None,
    **changes: Unpack[SamplingChanges],
) -> EncodedVision:
    sampling = qa.wanted_sampling(video, None, changes)
    return qa.encode(video, sampling, method=method).vision(qa.shape.vision)
