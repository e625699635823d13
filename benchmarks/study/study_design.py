"""What the study trains and asks: stages, arms, lengths; and where its files are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.study.base_model import SIZES, ModelSize
from videonsa.errors import UsageError
from videonsa.rendered.suite import frames_for_tokens
from videonsa.train.folder import MODEL

_RECIPES = Path(__file__).parents[1] / "recipes"
FRAME_SIZE, FRAME_TOKENS = 112, 16
_APART = 1_000_000
"""Distance in the suite's training split between two sources, so that they share no video."""
STILL = FRAME_TOKENS
"""The length of a still: one pair of frames."""
ARMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dense": ("attention.kind=dense",),
        "nsa": (),
        "window": ("attention.branches=[window]", "attention.window_size=384"),
        "random": ("attention.selection=random",),
        "no-compressed": ("attention.branches=[selected, window]",),
    }
)
"""How vision tokens attend in the last stages: changes to what the recipes say, which is NSA."""
_POINT = re.compile(r"nsa-(\d+)-(\d+)")
"""An arm `nsa-N-W`: NSA with n = N selected blocks and a window of W."""


def arm_settings(arm: str) -> tuple[str, ...]:
    """What an arm changes in the recipes: one of `ARMS`, or `nsa-N-W`.

    Raises:
        UsageError: neither.
    """
    if point := _POINT.fullmatch(arm):
        blocks, window = point.groups()
        return f"attention.num_selected_blocks={blocks}", f"attention.window_size={window}"
    if arm not in ARMS:
        raise UsageError(f"arm {arm!r}: want some of {', '.join(ARMS)}, nsa-N-W")
    return ARMS[arm]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Videos of one length."""

    length: int
    """Vision tokens."""
    count: int

    @property
    def frames(self) -> int:
        """Frames of a video."""
        return frames_for_tokens(self.length, frame_size=FRAME_SIZE)

    def name(self, place: int) -> str:
        """What `videonsa data build` is told; sources of different places share no video."""
        options = f"count={self.count},frames={self.frames},kinds=any,first={place * _APART}"
        return f"synthetic:suite=2,{options}"


def _sources(videos: int, *lengths: int) -> tuple[Source, ...]:
    """Log-uniform lengths: as many videos of each of a few that are a constant factor apart."""
    return tuple(Source(length=length, count=videos) for length in lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage of training; it begins with the model of the stage before."""

    name: str
    sources: tuple[Source, ...]
    has_arms: bool = False
    """One run for each arm. A stage without is dense, one run a seed; all arms begin with it."""

    @property
    def recipe(self) -> str:
        """What `videonsa train` is told; the recipe has steps, rates and batches."""
        return str(_RECIPES / f"study-{self.name}.yaml")


STAGES = (
    Stage(name="stills", sources=_sources(60_000, STILL)),
    Stage(
        name="1k",
        sources=(
            *_sources(8_000, 256, 384, 512, 768, 1024),
            *_sources(8_000, STILL),
        ),
    ),
    Stage(
        name="4k",
        sources=(*_sources(5_000, 2048, 3072, 4096, 4096), *_sources(1_000, 512, 1024)),
    ),
    Stage(
        name="adapt",
        sources=(*_sources(2_000, 1536, 2048, 3072, 4096), *_sources(500, 512, 1024)),
        has_arms=True,
    ),
    Stage(
        name="16k",
        sources=(*_sources(800, 6144, 8192, 12_288, 16_384), *_sources(400, 2048, 4096)),
        has_arms=True,
    ),
)
"""Each but the first also has videos of the one before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """The design of the study, which does not depend on where it runs."""

    size: ModelSize = SIZES["45m"]
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = ("dense", "nsa", "window", "random")
    stages: tuple[Stage, ...] = STAGES
    settings: tuple[str, ...] = ()
    """`section.key=value` for every run, `STAGE:section.key=value` for the runs of a stage."""
    videos: tuple[tuple[int, int], ...] = (
        (4096, 300),
        (8192, 300),
        (16_384, 300),
        (32_768, 300),
        (65_536, 300),
        (131_072, 300),
    )
    """Test videos of each length in tokens, which ascend."""
    stills: int = 300
    """Held-out stills, which the model of the stage of stills is asked about."""
    gate_videos: int = 8
    """Videos of one kind of question each, in which the gates of an arm are looked at."""
    gate_length: int = 4096
    dtype: str = "bfloat16"
    """Of the models that are asked."""

    def __post_init__(self) -> None:
        """Refuse arms that there are not: UsageError."""
        for arm in self.arms:
            arm_settings(arm)

    def runs_of(self, stage: Stage) -> list["Run"]:
        """The runs of a stage."""
        arms = self.arms if stage.has_arms else ("dense",)
        return [Run(stage=stage.name, seed=seed, arm=arm) for seed in self.seeds for arm in arms]

    def all_runs(self) -> list["Run"]:
        """All runs, in an order in which they can be trained."""
        return [run for stage in self.stages for run in self.runs_of(stage)]

    def last_runs(self) -> list["Run"]:
        """The runs whose models are asked about videos."""
        return self.runs_of(self.stages[-1])

    def stage_of(self, run: "Run") -> Stage:
        """The stage of a run."""
        return next(stage for stage in self.stages if stage.name == run.stage)

    def before(self, run: "Run") -> "Run | None":
        """The run of the stage before, whose model a run starts from; None: from fresh weights."""
        place = self.stages.index(self.stage_of(run))
        if not place:
            return None
        earlier = self.stages[place - 1]
        return Run(stage=earlier.name, seed=run.seed, arm=run.arm if earlier.has_arms else "dense")

    def is_trained(self, run: "Run", out: Path) -> bool:
        """Whether a run has its model, or is needed by none since all that begin with it have."""
        if run.model(out).is_dir():
            return True
        later = [one for one in self.all_runs() if self.before(one) == run]
        return bool(later) and all(self.is_trained(one, out) for one in later)

    def settings_of(self, run: "Run", out: Path) -> list[str]:
        """The values of `--set` for a run."""
        before = self.before(run)
        base = base_folder(out) if before is None else before.model(out)
        chosen = [
            f"model.base={base}",
            f"model.fresh={str(before is None).lower()}",
            f"data.manifest={data_folder(out, run.stage)}",
            f"run.seed={run.seed}",
            *arm_settings(run.arm),
        ]
        for setting in self.settings:
            stage, own = self._stage_of(setting)
            if stage in (None, run.stage):
                chosen.append(own)
        return chosen

    def _stage_of(self, setting: str) -> tuple[str | None, str]:
        """The stage that a setting is for (None: all stages), and the setting itself."""
        stage, colon, own = setting.partition(":")
        if not colon or "=" in stage:  # the colon belongs to the value
            return None, setting
        names = [one.name for one in self.stages]
        if stage not in names:
            raise UsageError(f"--set {setting}: no stage {stage!r}, want one of {', '.join(names)}")
        return stage, own


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of `videonsa train`."""

    stage: str
    seed: int
    arm: str

    @property
    def name(self) -> str:
        """Name of the run, also in file names."""
        return f"{self.stage}-{self.seed}-{self.arm}"

    def folder(self, out: Path) -> Path:
        """Its folder."""
        return out / "runs" / self.name

    def model(self, out: Path) -> Path:
        """Folder of its trained model, if it is finished."""
        return self.folder(out) / MODEL

    def answers(self, out: Path) -> Path:
        """Folder of what its model answered."""
        return out / "answers" / self.name


def data_folder(out: Path, stage: str) -> Path:
    """Folder of the manifest of a stage."""
    return out / "data" / stage


def base_folder(out: Path) -> Path:
    """Folder of the model that has learnt nothing."""
    return out / "base"
