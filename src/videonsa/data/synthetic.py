"""The training split of the suite as a source: videos that are rendered when they are read."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Self

from videonsa.data.records import Record, Text, Turn, VideoRef
from videonsa.data.sources import Entry
from videonsa.errors import UsageError
from videonsa.video.sampling import VideoInfo
from videonsa.video.suite import KINDS, Script, SuiteSpec, make_script, questions_of, suite_seed
from videonsa.video.suite.plan import rng_of

PREFIX = "synthetic:"
SOURCE = "synthetic"


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSource:
    """Videos of the suite's training split: one record a video, all its questions in turn."""

    count: int
    """Videos."""
    frames: int
    """Of each; at 2 a second."""
    size: int = 112
    """Pixels a side."""
    difficulty: str = "easy"
    kinds: str = "+".join(KINDS)
    """Kinds of question, joined by +."""
    first: int = 0
    """Number of the first video in the split."""

    def __post_init__(self) -> None:
        """Refuse what the suite cannot make: UsageError."""
        if self.count < 1 or self.first < 0:
            raise UsageError(
                f"count={self.count}, first={self.first}: want at least 1 video, from 0 on"
            )
        _ = self.spec

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `synthetic:count=N,frames=N[,size=N][,difficulty=WORD][,kinds=A+B][,first=N]`.

        Raises:
            UsageError: it is not that.

        """
        names = {field.name: field.type for field in fields(cls)}
        given: dict[str, int | str] = {}
        for item in text.removeprefix(PREFIX).split(","):
            name, _, value = item.partition("=")
            number = names.get(name) is int
            if name not in names or name in given or (number and not value.isdecimal()):
                raise UsageError(
                    f"{text!r}: {item!r} cannot be read: want each of {', '.join(names)} once at "
                    "most, as in synthetic:count=200,frames=128"
                )
            given[name] = int(value) if number else value
        if missing := {"count", "frames"} - given.keys():
            raise UsageError(f"{text!r}: no {' and no '.join(sorted(missing))}: want both")
        return cls(**given)  # type: ignore[arg-type]  # of the types of the fields

    @property
    def spec(self) -> SuiteSpec:
        """Of every video."""
        return SuiteSpec(
            num_frames=self.frames,
            frame_size=self.size,
            difficulty=self.difficulty,
            kinds=tuple(self.kinds.split("+")),
        )

    @property
    def name(self) -> str:
        """What it makes, in one word; `parse` reads it."""
        return PREFIX + ",".join(f"{field}={value}" for field, value in asdict(self).items())

    def entries(self) -> Iterator[Entry]:
        """One record a video."""
        for index in range(self.first, self.first + self.count):
            script = make_script(suite_seed("train", index), spec=self.spec)
            name = f"{self.name}#{index}"
            yield Entry(name, SOURCE, Record(id=name, source=SOURCE, turns=_turns(script)))


def script_text(script: Script) -> str:
    """What a script follows from, as `VideoRef.script` has it."""
    facts = {"seed": script.seed} | asdict(script.spec)
    return json.dumps(facts, separators=(",", ":"))


def script_of(text: str) -> Script:
    """The script that `script_text` wrote down.

    Raises:
        UsageError: it did not write this.

    """
    try:
        facts = json.loads(text)
        seed = facts.pop("seed")
        spec = SuiteSpec(**facts | {"kinds": tuple(facts["kinds"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not a script of the suite ({error}): want what it was built with"
        ) from error
    return make_script(seed, spec=spec)


def script_info(script: Script) -> VideoInfo:
    """What probing says of a script."""
    size = script.spec.frame_size
    return VideoInfo(
        path=f"script {script.seed}",
        duration=script.duration,
        num_frames=script.num_frames,
        fps=script.fps,
        width=size,
        height=size,
        container="script",
    )


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
