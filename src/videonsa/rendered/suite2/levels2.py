"""The kinds of question of the second suite, and what its difficulties mean."""

from dataclasses import dataclass

STILL_KINDS = ("place", "relation", "distance", "larger", "howmany", "number")
"""What one picture shows: a video of two frames is enough for any one of them."""
KINDS = (
    *STILL_KINDS,
    "needle",
    "order",
    "count",
    "direction",
    "compare",
    "identity",
    "state",
    "carry",
    "tally",
    "scenes",
)
ANY = ("any",)
"""In place of kinds: some of them, drawn from the seed of a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level2:
    """What a difficulty means, beside the strength of colours, which is that of the first suite.

    Lengths are in pixels of a frame of 112 a side.
    """

    radii: tuple[int, int, int]
    """Small and large, of which an object in a picture has one, with the middle between them, which
    objects that move have. Small objects stand in groups."""
    picture: int
    """Seconds that a picture is seen."""
    crossing: int
    """Seconds that an object takes to come by."""
    digits: int
    """Of a number."""
    font: int
    """Pixels a side of a pixel of the font: 7 of them are the height of a digit."""
    ratio: float
    """Of the two distances of `distance`."""
    tilt: float
    """Of `relation`: largest offset across the asked axis, as a share of that along it."""
    tally: int
    """Most objects to count across the video."""
    signs: int
    """That change the counter."""
    meetings: int
    """At which the white square may be handed on."""
    carriers: int
    distractors: int
    """Objects that come by in the time that one stays at most."""
    stay: tuple[int, int]
    """Seconds that a distractor stays."""
    crowded: bool
    """Whether distractors also come by while an object that is asked about does."""
    captions: float
    """Share of the time with a letter that is not asked for."""


LEVELS = {
    "easy": Level2(
        radii=(12, 16, 24),
        picture=3,
        crossing=3,
        digits=2,
        font=3,
        ratio=2.0,
        tilt=0.1,
        tally=6,
        signs=4,
        meetings=3,
        carriers=3,
        distractors=1,
        stay=(4, 8),
        crowded=False,
        captions=0.0,
    ),
    "medium": Level2(
        radii=(9, 12, 15),
        picture=2,
        crossing=3,
        digits=3,
        font=2,
        ratio=1.7,
        tilt=0.3,
        tally=7,
        signs=6,
        meetings=4,
        carriers=4,
        distractors=3,
        stay=(4, 8),
        crowded=True,
        captions=0.3,
    ),
    "hard": Level2(
        radii=(7, 9, 10),
        picture=1,
        crossing=2,
        digits=4,
        font=2,
        ratio=1.45,
        tilt=0.5,
        tally=8,
        signs=8,
        meetings=6,
        carriers=4,
        distractors=6,
        stay=(2, 6),
        crowded=True,
        captions=0.6,
    ),
}
DIFFICULTIES = tuple(LEVELS)
