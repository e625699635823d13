"""The training split of a suite as a source: videos that are rendered when they are read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Self

from videonsa.data.manifest import BuildFacts
from videonsa.data.records import Record, Text, Turn, VideoRef
from videonsa.data.scripts import check_range, parse_options, script_text
from videonsa.data.sources import Entry
from videonsa.rendered.suite import Script, SuiteSpec, questions_of, suite_seed
from videonsa.rendered.suite.suite_answers import rng_of
from videonsa.rendered.suites import KINDS, SPECS, check_suite, script_from

PREFIX = "synthetic:"
SOURCE = "synthetic"


def is_drawn(facts: BuildFacts) -> bool:
    """Whether all videos of a manifest are the suite's: they travel as drawings, not as frames."""
    sources = facts.options.get("sources", ())
    return bool(sources) and all(str(source).startswith(PREFIX) for source in sources)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteSource:
    """Videos of a suite's training split: one record per video, with all its questions."""

    count: int
    """Videos."""
    frames: int
    """Of each; at 2 a second."""
    size: int = 112
    """Pixels a side."""
    difficulty: str = "easy"
    kinds: str = ""
    """Kinds of question, joined by +; empty: all. `any`, of the second suite: some that fit, drawn
    for each video."""
    first: int = 0
    """Number of the first video in the split."""
    suite: int = 1
    """Number of the suite."""

    def __post_init__(self) -> None:
        """Refuse what the suite cannot make: UsageError."""
        check_suite(self.suite)
        check_range("video", count=self.count, first=self.first)
        _ = self.spec

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `synthetic:count=N,frames=N` and, if wanted, its other fields in the same way.

        Raises:
            UsageError: it is not that.

        """
        return cls(**parse_options(text, cls, example=f"{PREFIX}count=200,frames=128"))

    @property
    def spec(self) -> SuiteSpec:
        """Of every video."""
        return SPECS[self.suite](
            num_frames=self.frames,
            frame_size=self.size,
            difficulty=self.difficulty,
            kinds=tuple(self.kinds.split("+")) if self.kinds else KINDS[self.suite],
        )

    @property
    def name(self) -> str:
        """What it makes, in one word; `parse` reads it."""
        facts = asdict(self) | {"kinds": "+".join(self.spec.kinds)}
        if self.suite == 1:
            del facts["suite"]
        return PREFIX + ",".join(f"{field}={value}" for field, value in facts.items())

    def entries(self) -> Iterator[Entry]:
        """One record per video."""
        for index in range(self.first, self.first + self.count):
            script = script_from(suite_seed("train", index), spec=self.spec)
            name = f"{self.name}#{index}"
            yield Entry(name, SOURCE, Record(id=name, source=SOURCE, turns=_turns(script)))


def _turns(script: Script) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    video = VideoRef(script=script_text(script))
    questions = questions_of(script)
    # In any order: each kind also stands first, as it does when it is asked alone.
    for question in rng_of(script.seed, "turns").sample(questions, len(questions)):
        asked = Text(question.text)
        turns += [
            Turn(role="user", parts=(asked,) if turns else (video, asked)),
            Turn(role="assistant", parts=(Text(question.answer),)),
        ]
    return tuple(turns)
