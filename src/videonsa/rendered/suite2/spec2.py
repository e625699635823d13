"""The options of a video of the second suite: length, size, difficulty, position, kinds."""

import random
from dataclasses import dataclass

from videonsa.errors import UsageError
from videonsa.rendered.suite.suite_spec import MAX_FRAMES, SuiteSpec, check_size
from videonsa.rendered.suite2.levels2 import ANY, DIFFICULTIES, KINDS, LEVELS, Level2
from videonsa.rendered.suite2.plan2 import SHOWS, least_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite2Spec(SuiteSpec):
    """Length, frame size, difficulty, position of the evidence and kinds of question of a video.

    `num_frames` is even and at most `MAX_FRAMES`, and the evidence of the kinds fits into it; a
    video of two frames is one picture. The other fields are those of the first suite; `position` is
    around where the evidence stands, None strews it over the video.

    Raises UsageError where they do not go together.
    """

    kinds: tuple[str, ...] = KINDS
    """Or `ANY`: some that fit, drawn from the seed of the video."""

    def __post_init__(self) -> None:
        known = self.kinds == ANY or not {*self.kinds} - {*KINDS}
        if not self.kinds or len({*self.kinds}) < len(self.kinds) or not known:
            raise UsageError(
                f"kinds={self.kinds}: want some of {', '.join(KINDS)}, each once, or any"
            )
        if self.difficulty not in LEVELS:
            raise UsageError(f"difficulty={self.difficulty!r}: want {', '.join(DIFFICULTIES)}")
        if self.position is not None and not 0 <= self.position <= 1:
            raise UsageError(f"position={self.position}: want 0 to 1, or None")
        check_size(self.frame_size)
        least = min_frames2(self.kinds, difficulty=self.difficulty)
        if not least <= self.num_frames <= MAX_FRAMES or self.num_frames % 2:
            raise UsageError(
                f"num_frames={self.num_frames}: want an even number from {least} on for "
                f"{len(self.kinds)} kinds, and at most {MAX_FRAMES}; ask fewer kinds or a longer "
                "video"
            )

    @property
    def level2(self) -> Level2:
        """What the difficulty means."""
        return LEVELS[self.difficulty]


def min_frames2(kinds: tuple[str, ...] = KINDS, *, difficulty: str = "easy") -> int:
    """Fewest frames that hold the evidence of these kinds; of `ANY`, that of one of them."""
    return 2 * (1 if kinds == ANY else least_seconds(kinds, level=LEVELS[difficulty]))


def draw_kinds(rng: random.Random, spec: Suite2Spec) -> tuple[str, ...]:
    """The kinds of one video: those of the spec, or for `ANY` some whose evidence fits.

    Any number of kinds is as likely as any other, as far as they fit. Kinds that one show serves
    come together, so that stills show every kind of picture equally often.
    """
    if spec.kinds != ANY:
        return spec.kinds
    most, chosen = rng.randint(1, len(KINDS)), set[str]()
    shows = rng.sample([list(show.questions) for show in SHOWS.values()], len(SHOWS))
    for kind in (kind for kinds in shows for kind in rng.sample(kinds, len(kinds))):
        fits = least_seconds(tuple({*chosen, kind}), level=spec.level2) <= spec.seconds
        if fits and len(chosen) < most:
            chosen.add(kind)
    return tuple(kind for kind in KINDS if kind in chosen)
