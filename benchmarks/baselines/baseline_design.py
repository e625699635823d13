"""What is compared: methods with their sweeps, lengths, videos, and the models that answer."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.study.base_model import CONTEXT
from benchmarks.study.study_design import FRAME_TOKENS, STAGES, Run
from videonsa.errors import UsageError
from videonsa.models.methods.registry import METHODS
from videonsa.rendered.suite2 import KINDS

FACTORS = (1, 4, 16)
"""Of the longest video that the models were trained on."""
VIDEOS = 304
"""Of each length, where nothing else is said: 19 for each of the 16 kinds of question."""
ROOM = 1024
"""Tokens of the context that a video leaves for its question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A method, and how its budget is changed."""

    options: tuple[str, ...] = ("",)
    """`key=value,...` of each setting; the first, without any, is the published one."""
    arm: str = "dense"
    """Of the study, whose model it attends in: training-free methods are given the dense one."""


SWEEPS: Mapping[str, Sweep] = MappingProxyType(
    {
        "dense": Sweep(),
        "nsa": Sweep(
            options=(
                "",
                "num_selected_blocks=32",
                "num_selected_blocks=8",
                "num_selected_blocks=4",
            ),
            arm="nsa",
        ),
        "tri_shape": Sweep(options=("", "n_local=1024", "n_local=512", "n_local=256")),
        "minference": Sweep(
            options=(
                "",
                "vertical=500,slash=700",
                "vertical=100,slash=300",
                "vertical=30,slash=150",
            )
        ),
        "flexprefill": Sweep(
            options=(
                "",
                "gamma=0.8,min_budget=512",
                "gamma=0.7,min_budget=256",
                "gamma=0.5,min_budget=128",
            )
        ),
        "xattention": Sweep(options=("", "threshold=0.7", "threshold=0.5", "threshold=0.3")),
        "fastv": Sweep(options=("", "ratio=0.25", "ratio=0.1")),
        "visionzip": Sweep(options=("", "ratio=0.25", "ratio=0.35", "ratio=0.5")),
        "vscan": Sweep(
            options=("", "ratio=0.35", "ratio=0.5,layer_ratio=0.5", "ratio=0.7,layer_ratio=0.6")
        ),
        "evs": Sweep(options=("", "pruning_rate=0.5", "pruning_rate=0.8", "pruning_rate=0.9")),
        "flashvid": Sweep(options=("", "ratio=0.1", "ratio=0.4", "ratio=0.6")),
    }
)
"""By the name of the method; the settings behind the published one change its budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A method with its options, in the model of an arm."""

    name: str
    """As `videonsa --method` takes it."""
    method: str
    arm: str

    @property
    def is_published(self) -> bool:
        """Whether no option was changed."""
        return self.name == self.method


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared, wherever it runs."""

    methods: tuple[str, ...] = tuple(name for name in SWEEPS if name in METHODS)
    videos: tuple[tuple[int, int], ...] = ()
    """Lengths in tokens, and how many test videos of each."""
    questions: int = 1
    """About each video, of one kind after the other."""
    kinds: tuple[str, ...] = KINDS
    stage: str = "16k"
    """Of the study, whose models are asked."""
    seed: int = 0
    published_only: bool = False
    """Leave the other settings of each sweep out."""
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Refuse methods and kinds that there are not: UsageError."""
        for what, given, known in (
            ("method", self.methods, [name for name in SWEEPS if name in METHODS]),
            ("kind", self.kinds, KINDS),
        ):
            if unknown := [one for one in given if one not in known]:
                raise UsageError(f"{what} {unknown[0]!r}: want some of {', '.join(known)}")

    def settings(self) -> list[Setting]:
        """All settings, in the order of the methods."""
        found = []
        for method in self.methods:
            sweep = SWEEPS[method]
            for options in sweep.options[:1] if self.published_only else sweep.options:
                name = f"{method}:{options}" if options else method
                found.append(Setting(name=name, method=method, arm=sweep.arm))
        return found

    def arms(self) -> dict[str, list[Setting]]:
        """The settings of each model."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings():
            found.setdefault(setting.arm, []).append(setting)
        return found

    def model(self, arm: str, study: Path) -> Path:
        """Folder of the model of an arm, in the folder of a study."""
        return Run(stage=self.stage, seed=self.seed, arm=arm).model(study)


def lengths_of(trained: int) -> tuple[int, ...]:
    """The training length and its multiples, as far as question and video fit the context."""
    most = (CONTEXT - ROOM) // FRAME_TOKENS * FRAME_TOKENS
    return tuple(min(factor * trained, most) for factor in FACTORS)


def unswept() -> list[str]:
    """Registered methods that have no sweep here."""
    return [name for name in METHODS if name not in SWEEPS]


def add_comparison_options(parser: ArgumentParser) -> None:
    """The options that say what is compared."""
    own = Comparison()
    parser.add_argument(
        "--methods", type=_names, default=own.methods, metavar="A,B", help="(all that have a sweep)"
    )
    parser.add_argument(
        "--videos",
        type=_counts,
        default=(),
        metavar="LENGTH:COUNT,...",
        help="test videos of each length (300 each of the training length and 4 and 16 times it)",
    )
    parser.add_argument("--questions", type=int, default=own.questions, help="about a video (1)")
    parser.add_argument(
        "--kinds", type=_names, default=own.kinds, metavar="A,B", help="of questions (all)"
    )
    parser.add_argument("--stage", default=own.stage, help="of the study (16k)")
    parser.add_argument("--seed", type=int, default=own.seed, help="of the study (0)")
    parser.add_argument(
        "--published-only", action="store_true", help="published options, and no sweep"
    )
    parser.add_argument("--dtype", default=own.dtype, help="of the models (bfloat16)")


def read_comparison(args: Namespace) -> Comparison:
    """What the options say."""
    return Comparison(
        methods=args.methods,
        videos=args.videos or default_videos(args.stage),
        questions=args.questions,
        kinds=args.kinds,
        stage=args.stage,
        seed=args.seed,
        published_only=args.published_only,
        dtype=args.dtype,
    )


def comparison_options(comparison: Comparison) -> list[str]:
    """A comparison as options, for another process."""
    videos = ",".join(f"{length}:{count}" for length, count in comparison.videos)
    return [
        *("--methods", ",".join(comparison.methods), "--videos", videos),
        *("--questions", str(comparison.questions), "--kinds", ",".join(comparison.kinds)),
        *("--stage", comparison.stage, "--seed", str(comparison.seed)),
        *("--dtype", comparison.dtype),
        *(["--published-only"] if comparison.published_only else []),
    ]


def default_videos(stage: str) -> tuple[tuple[int, int], ...]:
    """Videos of the longest that a stage trains on, and of 4 and 16 times as many tokens.

    Raises:
        UsageError: no such stage.
    """
    found = {one.name: max(source.length for source in one.sources) for one in STAGES}
    if stage not in found:
        raise UsageError(f"--stage {stage}: want one of {', '.join(found)}")
    return tuple((length, VIDEOS) for length in lengths_of(found[stage]))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [pair.split(":") for pair in text.split(",")]
    try:
        return tuple(sorted((int(length), int(count)) for length, count in pairs))
    except ValueError:
        raise ArgumentTypeError(f"{text!r}: want LENGTH:COUNT,...") from None
