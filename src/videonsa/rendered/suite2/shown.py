"""What a show is made of: acts in series, and drafts of the questions about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from videonsa.rendered.suite2.acts import Act, Stage2
from videonsa.rendered.suite2.cast import Cast


@dataclass(frozen=True, slots=True)
class Draft:
    """A question, before its evidence has its times."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...]
    acts: Sequence[Act]


@dataclass(slots=True)
class Shown:
    """All units of a show."""

    series: list[list[Act]] = field(default_factory=list)
    """The acts of each are seen in this order, anywhere in the video."""
    apart: list[list[Act]] = field(default_factory=list)
    """Two acts each: one in the first third of the video, one in the last."""
    drafts: list[Draft] = field(default_factory=list)

    def ask(
        self, kind: str, text: str, answer: str, options: Sequence[str], acts: Sequence[Act]
    ) -> None:
        """Draft a question."""
        self.drafts.append(Draft(kind, text, answer, tuple(options), acts))


@dataclass(frozen=True, slots=True)
class Make:
    """What the makers of shows are given."""

    stage: Stage2
    cast: Cast
    kinds: frozenset[str]
    """That are asked."""
