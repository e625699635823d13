"""Short clips of a few moving shapes as a source: what the embedded model is trained on."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Self

from videonsa.data.records import Record, Text, Turn, VideoRef
from videonsa.data.scripts import check_range, parse_options, script_text
from videonsa.data.sources import Entry
from videonsa.rendered.clips import (
    KINDS,
    PLACE_KINDS,
    STILL_KINDS,
    Clip,
    ask_about,
    scene_seed,
)
from videonsa.rendered.clips.scene import SAMPLE_PERIOD

PREFIX = "clips:"
SOURCE = "clips"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSource:
    """Clips of the training split: one record a clip, several questions in any order."""

    count: int
    """Clips."""
    patches: int
    """Temporal patches of each."""
    first: int = 0
    """Number of the first in the split."""

    def __post_init__(self) -> None:
        """Refuse clips that cannot be rendered: UsageError."""
        check_range("clip", count=self.count, first=self.first)
        Clip(seed=0, patches=self.patches, phase=0.0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `clips:count=N,patches=N[,first=N]`.

        Raises:
            UsageError: it is not that.

        """
        options = parse_options(text, cls, example=f"{PREFIX}count=200,patches=24")
        return cls(**options)

    @property
    def name(self) -> str:
        """What it makes, in one word; `parse` reads it."""
        return PREFIX + ",".join(f"{field}={value}" for field, value in asdict(self).items())

    def entries(self) -> Iterator[Entry]:
        """One record per clip."""
        for index in range(self.first, self.first + self.count):
            seed = scene_seed("train", index)
            rng = random.Random(f"clip/{seed}/{self.patches}")
            clip = Clip(seed=seed, patches=self.patches, phase=rng.uniform(0, SAMPLE_PERIOD))
            name = f"{self.name}#{index}"
            yield Entry(name, SOURCE, Record(id=name, source=SOURCE, turns=_turns(clip, rng)))


def _turns(clip: Clip, rng: random.Random) -> tuple[Turn, ...]:
    scene = clip.scene
    asked = [ask_about(scene, kind, seed=rng.getrandbits(32)) for kind in _kinds(clip)]
    questions = [question for question in asked if question is not None]
    turns: list[Turn] = []
    video = VideoRef(script=script_text(clip))
    for question in rng.sample(questions, len(questions)):
        text = Text(question.text)
        turns += [
            Turn(role="user", parts=(text,) if turns else (video, text)),
            Turn(role="assistant", parts=(Text(question.answer),)),
        ]
    return tuple(turns)


def _kinds(clip: Clip) -> tuple[str, ...]:
    """`direction`, the hardest, is asked twice, and the places lead to it."""
    if clip.patches == 1:
        return STILL_KINDS * 2
    return (*KINDS, "direction", *PLACE_KINDS)
