"""Which records are kept: pure rules over what probing found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from videonsa.data.manifest import ManifestRow, MediaFacts
from videonsa.data.media import plan_media
from videonsa.data.probe_journal import FileState, Probed, ProbeFailure
from videonsa.data.reasons import DropError, Reason
from videonsa.data.records import ImageRef, Media, Record
from videonsa.data.tokens import TokenCount, count_tokens
from videonsa.errors import BudgetError, UsageError
from videonsa.video.chat import DEFAULT_SYSTEM, ChatTokenizer
from videonsa.video.sampling import PAPER_MAX_PIXELS, SamplingSpec

Long = Literal["cut", "drop"]
PAPER_FPS = 4.0
PAPER_FRAMES = (350, 550)
PAPER_MAX_TOKENS = 36_864
"""36K of context."""

MOST_PIXELS = 2**31
"""More than that a frame cannot be asked to have."""
_UNCAPPED = 2**21
"""Frames of a video that are counted: six days of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterOptions:
    """Every threshold; the defaults are the paper's."""

    fps: float = PAPER_FPS
    """Frames sampled a second."""
    min_frames: int = PAPER_FRAMES[0]
    """Fewest sampled frames of all videos of a record together."""
    max_frames: int = PAPER_FRAMES[1]
    """Most of them."""
    min_pixels: int | None = None
    """Pixels of a frame that smaller ones are enlarged to; None for 4 merged tokens."""
    max_pixels: int = PAPER_MAX_PIXELS
    """Most pixels of a frame."""
    max_tokens: int | None = PAPER_MAX_TOKENS
    """Most tokens of a record; None for no limit."""
    long: Long = "cut"
    """Records over `max_tokens`: cut at turns if the first exchange fits, or dropped."""
    system: str = DEFAULT_SYSTEM
    """The system message of records that have none."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant: UsageError."""
        if not 0 <= self.min_frames <= self.max_frames < _UNCAPPED:
            raise UsageError(
                f"frames from {self.min_frames} to {self.max_frames}: want 0 or more, ascending, "
                f"and less than {_UNCAPPED}"
            )
        if max(self.min_pixels or 0, self.max_pixels) >= MOST_PIXELS:
            raise UsageError(
                f"frames of {self.min_pixels} to {self.max_pixels} pixels: want less than "
                f"{MOST_PIXELS}"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens={self.max_tokens}: want at least 1, or None")
        if self.long not in get_args(Long):
            raise UsageError(f"long={self.long!r}: want one of {', '.join(get_args(Long))}")
        _ = self.sampling

    @property
    def sampling(self) -> SamplingSpec:
        """How videos are sampled in training. Of a kept record, nothing is left out by it."""
        return SamplingSpec(
            fps=self.fps,
            max_frames=max(self.max_frames, SamplingSpec().min_frames),
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    @property
    def uncapped(self) -> SamplingSpec:
        """The same without a limit of frames: how many there would be."""
        return without_cap(self.sampling)


class Found(NamedTuple):
    """A video or an image of a record as probing found it."""

    media: Media
    state: FileState
    probed: Probed


def judge(
    record: Record,
    media: tuple[MediaFacts, ...],
    *,
    options: FilterOptions,
    tokenizer: ChatTokenizer,
) -> ManifestRow:
    """What the manifest says of a record that is kept.

    Args:
        record: to be judged.
        media: facts of each of `record.media`, without a limit of frames.
        options: the thresholds.
        tokenizer: counts the text.

    Raises:
        DropError: it is not kept.

    """
    if media:  # the rule is about videos: text alone is kept
        check_frames(media, options)
    count = check_tokens(record, media, options=options, tokenizer=tokenizer)
    kept = media[: count.num_media]
    if media:
        check_frames(kept, options)
    videos = _videos(kept)
    return ManifestRow(
        record=record,
        media=media,
        num_turns=count.num_turns,
        num_media=count.num_media,
        num_frames=sum(facts.num_frames for facts in videos),
        duration=sum((facts.duration for facts in videos), 0.0),
        video_tokens=sum(facts.num_tokens for facts in videos),
        image_tokens=sum(facts.num_tokens for facts in kept if facts.kind == "image"),
        text_tokens=count.text_tokens,
        tokens=count.num_tokens,
        vision_begin=count.vision_begin,
        label_tokens=count.label_tokens,
    )


def without_cap(sampling: SamplingSpec) -> SamplingSpec:
    """The same sampling without a limit of frames."""
    return replace(sampling, max_frames=_UNCAPPED)


def media_facts(found: Found, sampling: SamplingSpec) -> MediaFacts:
    """What sampling makes of a video or an image.

    Raises:
        DropError: it was not readable, is a video in the place of an image, or has a shape that
            cannot be resized, or not to the pixels that it asks for.

    """
    media, state, info = found
    if isinstance(info, ProbeFailure):
        raise info.to_error()
    is_image = isinstance(media, ImageRef)
    if is_image and info.duration > 0:
        raise DropError(Reason.BROKEN, f"{info.path}: a video in the place of an image")
    try:
        plan = plan_media(media, info, sampling)
    except (UsageError, BudgetError) as error:
        raise DropError(Reason.BAD_SHAPE, f"{info.path}: {error}") from error
    return MediaFacts(
        kind="image" if is_image else "video",
        num_frames=plan.num_frames,
        height=plan.height,
        width=plan.width,
        num_tokens=plan.num_tokens,
        sampled_fps=float(plan.sampled_fps),
        duration=float(info.duration),
        source_frames=info.num_frames or 0,
        source_height=info.height,
        source_width=info.width,
        file_size=state.size,
        mtime_ns=state.mtime_ns,
    )


def check_frames(media: Sequence[MediaFacts], options: FilterOptions) -> None:
    """The paper's rule: so many sampled frames, of all videos together.

    Raises:
        DropError: there are fewer or more.

    """
    num_frames = sum(facts.num_frames for facts in _videos(media))
    if num_frames < options.min_frames:
        detail = f"{num_frames}, under {options.min_frames}"
        raise DropError(Reason.FEW_FRAMES, detail, num_frames=num_frames)
    if num_frames > options.max_frames:
        detail = f"{num_frames}, over {options.max_frames}"
        raise DropError(Reason.MANY_FRAMES, detail, num_frames=num_frames)


def check_tokens(
    record: Record,
    media: Sequence[MediaFacts],
    *,
    options: FilterOptions,
    tokenizer: ChatTokenizer,
) -> TokenCount:
    """How long a record is after it was cut.

    Raises:
        DropError: too long to be kept.

    """
    try:
        count = count_tokens(
            record,
            tokenizer=tokenizer,
            vision_token_counts=[facts.num_tokens for facts in media],
            max_tokens=options.max_tokens,
            system=options.system,
        )
    except BudgetError as error:
        raise DropError(Reason.TOO_LONG, str(error)) from error
    if not record.learned_turns(count.num_turns):
        raise DropError(Reason.NO_LOSS, "what is to be learnt was cut")
    if options.long == "drop" and count.num_turns < len(record.turns):
        raise DropError(Reason.TOO_LONG, f"over {options.max_tokens} tokens")
    return count


def _videos(media: Sequence[MediaFacts]) -> list[MediaFacts]:
    return [facts for facts in media if facts.kind == "video"]
