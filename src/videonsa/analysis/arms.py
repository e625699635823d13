"""Several ways to attend on the same videos: accuracy, agreement with the first, and their cost."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from videonsa.analysis.asked import Asked, AskedQuestion, AskedVideo
from videonsa.analysis.finding import Progress
from videonsa.analysis.reading import Read, read
from videonsa.evals.intervals import Interval, mean_over_videos
from videonsa.evals.scoring import best_constant
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.reduction import TokenReduction

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA

SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """Of an arm on the videos of one task; intervals are over videos."""

    task: str
    accuracy: Interval
    difference: Interval
    """From the first arm, paired."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to attend; intervals are over videos, differences from the first arm are paired."""

    label: str
    accuracy: Interval | None
    """Share of right answers; None where no answer is known."""
    difference: Interval | None
    agreement: Interval
    """Share of replies that are those of the first arm."""
    attention: float | None
    """Mean share of dense causal attention that was computed, compressed keys counted."""
    prefill_seconds: Interval
    """Of the videos but the first, which prepares the device."""
    peak_gb: float | None
    """Highest, of the process on a CPU, of the allocator on a GPU."""
    tasks: tuple[TaskScore, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guessing:
    """What one who has seen no video gets right of the same questions."""

    chance: float | None
    """Options drawn at random."""
    constant: float | None
    """The best constant answer of each kind, picked after the fact: with few questions it is far
    above chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Arms on the same videos."""

    arms: tuple[Arm, ...]
    num_videos: int
    num_questions: int
    vision_tokens: tuple[int, int]
    """Of the shortest and the longest video, as they were read."""
    prompt_tokens: tuple[int, int]
    """Of the shortest and the longest prompt."""
    guessing: Guessing


def compare_arms(
    qa: "VideoQA",
    asked: Asked,
    arms: Sequence[tuple[str, AttentionMethod]],
    *,
    progress: Progress,
) -> Comparison:
    """Read every video under every arm; frames are encoded once, for the first.

    Args:
        qa: the model.
        asked: videos and questions.
        arms: a label and a method each; the first is what others are compared with.
        progress: told which video is read.
    """
    assert not any(isinstance(one, TokenReduction) for _, one in arms), "they encode for themselves"
    videos = asked.videos()
    reads: list[list[Read]] = []
    for place, video in enumerate(videos, start=1):
        progress(f"video {place} of {len(videos)}: {video.task}, {len(arms)} ways to attend")
        vision = video.encode(qa, arms[0][1])
        reads.append([read(qa, vision, video.questions, method=method) for _, method in arms])
    prompts = [of_video[0].prompt_tokens for of_video in reads]
    vision_tokens = [of_video[0].vision_tokens for of_video in reads]
    columns = list(zip(*reads, strict=True))
    return Comparison(
        arms=tuple(
            _arm(label, videos, column, columns[0])
            for (label, _), column in zip(arms, columns, strict=True)
        ),
        num_videos=len(videos),
        num_questions=sum(len(video.questions) for video in videos),
        vision_tokens=(min(vision_tokens), max(vision_tokens)),
        prompt_tokens=(min(prompts), max(prompts)),
        guessing=guessing_of([one for video in videos for one in video.questions]),
    )


def guessing_of(questions: Sequence[AskedQuestion]) -> Guessing:
    """Of questions whose answer and options are known; None where there is none."""
    known = [one for one in questions if one.answer is not None and one.options]
    if not known:
        return Guessing(chance=None, constant=None)
    kinds: dict[str, list[AskedQuestion]] = defaultdict(list)
    for one in known:
        kinds[one.kind].append(one)
    right = sum(best_constant([_Known(one) for one in kind]).right for kind in kinds.values())
    chance = sum(1 / len(one.options) for one in known) / len(known)
    return Guessing(chance=chance, constant=right / len(known))


class _Known:
    """A question as `best_constant` takes it."""

    def __init__(self, question: AskedQuestion) -> None:
        self.answer, self.options = question.answer or "", question.options


def _arm(
    label: str, videos: Sequence[AskedVideo], reads: Sequence[Read], first: Sequence[Read]
) -> Arm:
    tasks: dict[str, list[int]] = defaultdict(list)
    for place, video in enumerate(videos):
        tasks[video.task].append(place)
    right = [one.right(video.questions) for one, video in zip(reads, videos, strict=True)]
    before = [one.right(video.questions) for one, video in zip(first, videos, strict=True)]
    known = bool(sum(map(len, right)))
    same = [
        [a == b for a, b in zip(one.replies, other.replies, strict=True)]
        for one, other in zip(reads, first, strict=True)
    ]
    shares = [one.attention for one in reads]
    peaks = [one.peak_bytes for one in reads if one.peak_bytes is not None]
    seconds = [one.prefill_seconds for one in reads[1:] or reads]
    return Arm(
        label=label,
        accuracy=_mean(right) if known else None,
        difference=_gap(right, before) if known else None,
        agreement=_mean(same),
        attention=None if None in shares else sum(filter(None, shares)) / len(shares),
        prefill_seconds=mean_over_videos(seconds, [1] * len(seconds)),
        peak_gb=max(peaks) / 1e9 if peaks else None,
        tasks=tuple(
            TaskScore(
                task=task,
                accuracy=_mean([right[place] for place in places]),
                difference=_gap([right[i] for i in places], [before[i] for i in places]),
            )
            for task, places in (tasks.items() if known else ())
        ),
    )


def _mean(verdicts: Sequence[Sequence[bool]]) -> Interval:
    sums, counts = [sum(one) for one in verdicts], [len(one) for one in verdicts]
    return mean_over_videos(sums, counts, bounds=SHARE)


def _gap(verdicts: Sequence[Sequence[bool]], before: Sequence[Sequence[bool]]) -> Interval:
    gaps = [sum(a) - sum(b) for a, b in zip(verdicts, before, strict=True)]
    return mean_over_videos(gaps, [len(one) for one in verdicts], bounds=DIFFERENCE)


def percent(interval: Interval | None, *, signed: bool = False) -> str:
    """An interval in percent, or in points where it is a difference."""
    if interval is None:
        return "not known"
    sign = "+" if signed else ""
    unit = " points" if signed else " %"
    value = f"{100 * interval.value:{sign}.1f}{unit}"
    if interval.low is None or interval.high is None:
        return f"{value} (one video: no interval)"
    return f"{value} ({100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f})"


def told_difference(arm: Arm, *, than: str) -> str:
    """What can be said of an arm's accuracy beside that of the first, in one sentence."""
    if arm.difference is None:
        return (
            f"{arm.label}: the answers are not known; {percent(arm.agreement)} of the replies "
            f"are those {than}."
        )
    verdict = "cannot be told apart from it"
    if arm.difference.excludes(0):
        verdict = "worse" if arm.difference.value < 0 else "better"
    return (
        f"{arm.label}: {percent(arm.accuracy)} right, {percent(arm.difference, signed=True)} "
        f"beside {than}: {verdict}; {percent(arm.agreement)} of the replies agree."
    )
