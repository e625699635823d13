"""The options of a video of the suite: length, size, difficulty, position, kinds, seed."""

import math
from dataclasses import dataclass
from typing import Literal

from videonsa.errors import UsageError
from videonsa.rendered.clips.scene import SAMPLE_PERIOD, scene_seed

FPS = 1 / SAMPLE_PERIOD
"""Sampled frames a second; a pair of them, one second, is a temporal patch."""
PLACES = {
    "needle": (1, SAMPLE_PERIOD),
    "number": (1, 1.0),
    "needles": (3, 2.0),
    "order": (2, 3.0),
    "count": (4, 3.0),
    "direction": (1, 3.0),
    "relation": (1, 3.0),
    "distance": (1, 3.0),
    "compare": (2, 3.0),
}
"""Per kind: the number of places on the time line with its evidence (at most), seconds each."""
KINDS = tuple(PLACES)
GAP = 1
"""Seconds without evidence behind each place."""
WINDOW = 0.1
"""Share of the video over which the places of `needles`, `order` and `count` are strewn."""
MIN_SECONDS = 16
MIN_SIZE, MAX_SIZE = 112, 2016
MAX_FRAMES = 1 << 22
"""Of a video: 24 days at 2 a second."""
_PATCH = 28


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """What a difficulty means; sizes are shares of the frame's side."""

    radius: tuple[float, float]
    strength: float
    """Opacity of colours against dark grey."""
    distractors: int
    """Moving objects that appear in the time that one stays at most."""
    stay: tuple[int, int]
    """Seconds that a distractor stays."""
    captions: float
    """Share of the time with a line of text that is not asked for."""
    text: float
    """Height of the asked number, in font pixels of 1/112 of the side."""
    ratio: float
    """Of the two sizes of `compare` and of the two distances of `distance`."""
    tilt: float
    """Of `relation`: largest offset across the asked axis, as a share of that along it."""


LEVELS = {
    "easy": Level(
        radius=(0.135, 0.17),
        strength=1.0,
        distractors=1,
        stay=(16, 24),
        captions=0.4,
        text=3.0,
        ratio=2.0,
        tilt=0.1,
    ),
    "medium": Level(
        radius=(0.10, 0.13),
        strength=0.8,
        distractors=5,
        stay=(8, 16),
        captions=0.7,
        text=2.0,
        ratio=1.7,
        tilt=0.3,
    ),
    "hard": Level(
        radius=(0.07, 0.09),
        strength=0.6,
        distractors=9,
        stay=(4, 8),
        captions=1.0,
        text=1.5,
        ratio=1.45,
        tilt=0.5,
    ),
}
DIFFICULTIES = tuple(LEVELS)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteSpec:
    """Length, frame size, difficulty, position of the evidence and kinds of question of a video.

    Raises UsageError where they do not go together.
    """

    num_frames: int
    """At 2 a second; even, at least `min_frames(kinds)`, and at most `MAX_FRAMES`."""
    frame_size: int = 112
    """Pixels a side: a multiple of 28 from `MIN_SIZE` to `MAX_SIZE`."""
    difficulty: str = "easy"
    position: float | None = None
    """Where the evidence stands, 0 (start) to 1 (end); None draws it uniformly, kind by kind."""
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        if not self.kinds or len({*self.kinds}) < len(self.kinds) or {*self.kinds} - {*KINDS}:
            raise UsageError(f"kinds={self.kinds}: want some of {', '.join(KINDS)}, each once")
        if self.difficulty not in LEVELS:
            raise UsageError(f"difficulty={self.difficulty!r}: want {', '.join(DIFFICULTIES)}")
        if self.position is not None and not 0 <= self.position <= 1:
            raise UsageError(f"position={self.position}: want 0 to 1, or None")
        check_size(self.frame_size)
        least = min_frames(self.kinds)
        if not least <= self.num_frames <= MAX_FRAMES or self.num_frames % 2:
            raise UsageError(
                f"num_frames={self.num_frames}: want an even number from {least} on for "
                f"{len(self.kinds)} kinds, and at most {MAX_FRAMES}; ask fewer kinds or a longer "
                "video"
            )

    @property
    def seconds(self) -> int:
        """Length of the video, whole seconds."""
        return self.num_frames // 2

    @property
    def level(self) -> Level:
        """What the difficulty means."""
        return LEVELS[self.difficulty]


def min_frames(kinds: tuple[str, ...] = KINDS) -> int:
    """Fewest frames that hold the evidence of these kinds one after the other."""
    return 2 * max(MIN_SECONDS, sum(PLACES[kind][0] * slot_of(kind) for kind in kinds))


def slot_of(kind: str) -> int:
    """Whole seconds that one place of a kind takes, with the gap behind it."""
    return math.ceil(PLACES[kind][1]) + GAP


def position_tolerance(spec: SuiteSpec, kind: str) -> float:
    """How far a question's position may lie from the one asked for, as a share of the video.

    Evidence may move to make room for that of other kinds, by their seconds at most. Evidence in
    several places is spread over a tenth of the video, at either end inwards. The tolerance does
    not hold for `compare`, whose places are the first and the last minute.
    """
    crowd = min_frames(spec.kinds) / spec.num_frames
    return min(1.0, crowd + (WINDOW / 2 if PLACES[kind][0] > 1 else 0.0))


def suite_seed(split: Literal["train", "test"], index: int) -> int:
    """Seed number `index` (0 to 2**40 - 1) of a split; no seed belongs to both."""
    if split not in ("train", "test") or not 0 <= index < 1 << 40:
        raise UsageError(f"split={split!r}, index={index}: want train or test, 0 <= index < 2**40")
    return scene_seed(split, index)


def frames_for_tokens(tokens: int, *, frame_size: int) -> int:
    """Largest even number of frames whose pairs, (frame_size / 28)^2 tokens each, fit `tokens`."""
    check_size(frame_size)
    pair = (frame_size // _PATCH) ** 2
    if tokens < pair:
        raise UsageError(f"tokens={tokens}: want at least {pair}, one pair of frames")
    return 2 * (tokens // pair)


def check_size(frame_size: int) -> None:
    """Refuse sizes of frames that are not whole merged patches: UsageError."""
    if not MIN_SIZE <= frame_size <= MAX_SIZE or frame_size % _PATCH:
        raise UsageError(
            f"frame_size={frame_size}: want a multiple of {_PATCH} from {MIN_SIZE} on, and at most "
            f"{MAX_SIZE}"
        )
