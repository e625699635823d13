"""What a run of the suite asks, and of whom."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from videonsa.errors import UsageError
from videonsa.evals.conditions import Condition, ablated
from videonsa.models.methods import SPARSE, AttentionMethod
from videonsa.ops.spec import BRANCHES
from videonsa.rendered.suite import KINDS, SuiteSpec, frames_for_tokens, suite_seed
from videonsa.rendered.suites import SPECS, check_suite

Style = Literal["free", "choice", "likeliest"]
STYLES: tuple[Style, ...] = ("free", "choice", "likeliest")
WHOLE, GREYED, BLIND = "whole", "grey", "blind"
CONDITIONS = {
    WHOLE: Condition(),
    **{f"no-{branch}": ablated(branch) for branch in BRANCHES},
    "none": Condition(branches=()),
    GREYED: Condition(video="grey"),
    BLIND: Condition(video="absent"),
}
"""`none`: vision tokens attend to nothing; `blind`: the question alone, without a video."""

_SAMPLE_BITS, _LENGTH_BITS = 16, 24
"""Of the number of a video within its split."""
_MOST_SCALE = 1000
_SELECTION = ("lengths", "samples", "conditions")


def check_conditions(names: Sequence[str], method: AttentionMethod | type[AttentionMethod]) -> None:
    """Refuse conditions that ablate what a method does not have.

    Raises:
        UsageError: naming them.
    """
    off = [name for name in names if CONDITIONS[name].ablates]
    if off and not method.branches:
        raise UsageError(
            f"conditions {', '.join(off)} with {method.name} attention: it has no branches; leave "
            "them out, or use a model with gates"
        )


class SuiteVideo(NamedTuple):
    """A video that is asked about, under all conditions."""

    length: int
    sample: int
    """Number among the videos of its length."""
    seed: int
    spec: SuiteSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRun:
    """The options of a run, all resolved. A folder of results belongs to one of them.

    A run may be resumed with other `lengths`, `samples` and `conditions`: they only say
    which questions are asked. Everything else changes what an answer means.
    """

    model: str
    lengths: tuple[int, ...]
    """Tokens of a video, at most."""
    samples: int
    """Videos of each length."""
    conditions: tuple[str, ...] = (WHOLE, BLIND)
    kinds: tuple[str, ...] = KINDS
    difficulty: str = "easy"
    positions: tuple[float, ...] = ()
    """Where the evidence lies, taken in turn by the videos of a length; empty: drawn evenly."""
    frame_size: int = 112
    style: Style = "free"
    attention: str = SPARSE
    """Name of the method."""
    nsa: tuple[tuple[str, Any], ...] = ()
    """Changes to the model's NSA, as pairs of name and value."""
    dtype: str = "float32"
    device: str = "cpu"
    split: Literal["train", "test"] = "test"
    seed: int = 0
    """Number, within the split, of the first video of each length."""
    time_scale: float = 1.0
    """Factor on the seconds that the model is told. Below 1, a longer video has the position ids
    of a shorter one."""
    suite: int = 1
    """Its number. Of the second, free answers and the likeliest option are both scored."""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked; the rest is refused by `SuiteSpec`."""
        self._check_numbers()
        check_suite(self.suite)
        if self.scores_both and self.style != "free":
            raise UsageError(
                f"style={self.style!r} with suite=2: want 'free', with which the likeliest option "
                "is scored too"
            )
        if self.style not in STYLES:
            raise UsageError(f"style={self.style!r}: want one of {', '.join(STYLES)}")
        for name in ("lengths", "conditions"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"{name}={values}: want at least one, each once")
        unknown = [name for name in self.conditions if name not in CONDITIONS]
        if unknown:
            raise UsageError(
                f"conditions {', '.join(unknown)}: want some of {', '.join(CONDITIONS)}"
            )
        for length in self.lengths:
            self.spec_of(length, 0)

    @property
    def scores_both(self) -> bool:
        """Whether free answers and the likeliest option are both scored, and questions batched."""
        return self.suite == 2

    def _check_numbers(self) -> None:
        if self.samples < 1:
            raise UsageError(f"samples={self.samples}: want at least 1")
        if not 0 <= self.seed <= (1 << _SAMPLE_BITS) - self.samples:
            raise UsageError(
                f"seed={self.seed} with {self.samples} samples: want 0 <= seed and seed + samples "
                f"<= {1 << _SAMPLE_BITS}"
            )
        if not 1 / _MOST_SCALE <= self.time_scale <= _MOST_SCALE:
            raise UsageError(
                f"time_scale={self.time_scale}: want a positive number, from {1 / _MOST_SCALE} to "
                f"{_MOST_SCALE}"
            )
        if max(self.lengths, default=0) >= 1 << _LENGTH_BITS:
            raise UsageError(
                f"lengths={self.lengths}: want videos of less than {1 << _LENGTH_BITS} tokens"
            )

    def spec_of(self, length: int, sample: int) -> SuiteSpec:
        """The video number `sample` of a length."""
        positions = self.positions
        return SPECS[self.suite](
            num_frames=frames_for_tokens(length, frame_size=self.frame_size),
            frame_size=self.frame_size,
            difficulty=self.difficulty,
            position=positions[sample % len(positions)] if positions else None,
            kinds=self.kinds,
        )

    def seed_of(self, length: int, sample: int) -> int:
        """Its seed: no two lengths share one, so that all answers are independent."""
        return suite_seed(self.split, (length << _SAMPLE_BITS) + self.seed + sample)

    def videos(self) -> list[SuiteVideo]:
        """All videos, the lengths in turn, so that a run cut short has some of each."""
        return [
            SuiteVideo(length, sample, self.seed_of(length, sample), self.spec_of(length, sample))
            for sample in range(self.samples)
            for length in sorted(self.lengths)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        stated: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.time_scale == 1:
            del stated["time_scale"]  # runs from before there was one can be resumed
        if self.suite == 1:
            del stated["suite"]
        return stated | {"nsa": dict(self.nsa)}

    def identity(self) -> dict[str, Any]:
        """What every line of a folder must share."""
        return {name: value for name, value in self.to_dict().items() if name not in _SELECTION}
