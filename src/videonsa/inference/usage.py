"""`Usage`: what the model was given for an answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from videonsa.errors import UsageError
from videonsa.inference.encoded_clip import EncodedClip
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.shape import VisionShape
from videonsa.planning.budget import AttentionBudget, attention_budget
from videonsa.planning.computed import Computed
from videonsa.video.chat import Asked

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA
    from videonsa.inference.stored_session import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipUsage:
    """What the model was given of one video or image."""

    times: tuple[float, ...]
    """Seconds of each frame used."""
    height: int
    width: int
    grid: tuple[int, int, int]
    """Temporal patches, rows and columns of patches."""
    video_tokens: int
    """That were read."""
    encoded_tokens: int
    """That the vision tower gave; a method may keep some of them."""

    @classmethod
    def of(cls, clip: EncodedClip, vision: VisionShape) -> Self:
        """Of a clip; its features are not looked at."""
        grid = clip.grid(vision)
        return cls(
            times=clip.times,
            height=clip.height,
            width=clip.width,
            grid=grid,
            video_tokens=sum(clip.tokens_of_patches(vision)),
            encoded_tokens=math.prod(grid) // vision.merge_size**2,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What the model was given. Known before the first token."""

    model: str
    attention: str
    """Name of the method."""
    times: tuple[float, ...]
    """Seconds of each frame used, of the first video."""
    height: int
    width: int
    grid: tuple[int, int, int]
    """Temporal patches, rows and columns of patches."""
    video_tokens: int
    """Of all videos and images, that were read."""
    encoded_tokens: int
    """That the vision tower gave of them; a method may keep some of these."""
    prompt_tokens: int
    """Video and text, and what was said before."""
    cached_tokens: int
    """Of these, read before this question."""
    context: int
    spec: dict[str, Any] | None
    """Parameters of the method; None where it has none."""
    budget: AttentionBudget | None
    """None where a token attends to all before it."""
    generation: GenerationSettings
    """How its tokens are chosen: what was asked for, else what the checkpoint states."""
    warnings: tuple[str, ...] = ()
    """What was lost of the video."""
    notes: tuple[str, ...] = ()
    """How the weights are run."""
    joined: tuple[ClipUsage, ...] = ()
    """Videos and images after the first."""
    computed: Computed | None = None
    """What the layers held and computed of the prompt, measured; None until it is answered."""

    @property
    def num_frames(self) -> int:
        """Frames used."""
        return len(self.times)


def usages_of(
    qa: "VideoQA",
    place: "Place",
    questions: Sequence[Asked],
    *,
    settings: GenerationSettings,
    num_read: int,
    notes: tuple[str, ...],
) -> list[Usage]:
    """Of questions that are each asked from a place of a session on.

    Args:
        qa: the model.
        place: from where.
        questions: to ask.
        settings: how tokens are chosen.
        num_read: tokens that the session has read.
        notes: beside those of the clips.

    Raises:
        UsageError: no clips.
    """
    held = place.mark.num_tokens
    return [
        usage_of(
            qa,
            place.clips,
            settings=settings,
            num_tokens=place.mark.count(question),
            num_cached=min(num_read, held),
            notes=notes,
        )
        for question in questions
    ]


def usage_of(
    qa: "VideoQA",
    clips: Sequence[EncodedClip],
    *,
    settings: GenerationSettings,
    num_tokens: int,
    num_cached: int,
    notes: tuple[str, ...],
) -> Usage:
    """Of a question.

    Args:
        qa: the model.
        clips: the videos and images that it sees.
        settings: how tokens are chosen.
        num_tokens: of the prompt.
        num_cached: of these, read before.
        notes: beside those of the clips.

    Raises:
        UsageError: no clips.
    """
    method, given = qa.model.method, [ClipUsage.of(clip, qa.shape.vision) for clip in clips]
    if not given:
        raise UsageError("a question before any video: open or join one, or extend the session")
    first = given[0]
    per_frame = max(first.video_tokens // first.grid[0], 1)
    return Usage(
        model=qa.name,
        attention=method.full_name,
        times=first.times,
        height=first.height,
        width=first.width,
        grid=first.grid,
        video_tokens=sum(clip.video_tokens for clip in given),
        encoded_tokens=sum(clip.encoded_tokens for clip in given),
        prompt_tokens=num_tokens,
        cached_tokens=num_cached,
        context=qa.shape.context,
        spec=method.parameters(),
        budget=attention_budget(method, prompt_tokens=num_tokens, tokens_per_frame=per_frame),
        generation=settings,
        warnings=tuple(warning for clip in clips for warning in clip.warnings),
        notes=tuple(dict.fromkeys((*notes, *(note for clip in clips for note in clip.notes)))),
        joined=tuple(given[1:]),
    )
