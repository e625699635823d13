"""What the study trains and asks: stages, seeds, twins; and where its files are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videonsa.errors import UsageError
from videonsa.rendered.suite import KINDS, frames_for_tokens
from videonsa.train.folder import MODEL

Attention = Literal["nsa", "dense"]
_RECIPES = Path(__file__).parents[1] / "recipes"
FRAME_SIZE = 112
TRAINING_TOKENS = 4096
"""Tokens of the videos of the last stage."""
_SHORT_KINDS = (
    # Kinds that fit together into 16 seconds, the shortest video; more videos of kinds learnt late.
    (6000, "needle+number+direction+relation+distance"),
    (3000, "order+compare"),
    (2000, "needles+direction"),
    (1000, "count"),
)
_APART = 1_000_000
"""Distance in the suite's training split between two sources, so that they share no video."""


def _source(place: int, *, count: int, frames: int, kinds: str = "+".join(KINDS)) -> str:
    return f"synthetic:count={count},frames={frames},kinds={kinds},first={place * _APART}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage of training, on videos of one length."""

    name: str
    recipe: str
    """Name of a recipe in benchmarks/recipes; all extend `study`."""
    sources: tuple[str, ...]
    """Sources of `videonsa data build`."""
    attentions: tuple[Attention, ...] = ("dense",)
    """One run for each of them and each seed; stages before the twins are trained once a seed."""

    @property
    def recipe_file(self) -> str:
        """What `videonsa train` is told."""
        return str(_RECIPES / f"{self.recipe}.yaml")


STAGES = (
    Stage(
        name="short",
        recipe="study-short",
        sources=tuple(
            _source(place, count=count, frames=32, kinds=kinds)
            for place, (count, kinds) in enumerate(_SHORT_KINDS)
        ),
    ),
    Stage(name="medium", recipe="study-medium", sources=(_source(10, count=8000, frames=128),)),
    Stage(
        name="long",
        recipe="study",
        sources=(
            _source(
                11,
                count=4300,
                frames=frames_for_tokens(TRAINING_TOKENS, frame_size=FRAME_SIZE),
            ),
        ),
        attentions=("nsa", "dense"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """The design of the study, which does not depend on where it runs."""

    seeds: tuple[int, ...] = (0, 1, 2)
    stages: tuple[Stage, ...] = STAGES
    base: str = "embedded"
    """The model whose weights, without gates, all runs start from."""
    settings: tuple[str, ...] = ()
    """`section.key=value` for every run, `STAGE:section.key=value` for the runs of a stage."""
    lengths: tuple[int, ...] = (TRAINING_TOKENS, 2 * TRAINING_TOKENS, 4 * TRAINING_TOKENS)
    """Tokens of the test videos."""
    samples: int = 100
    """Test videos of each length, each with all kinds of question."""
    scale_time: bool = False
    """Tell the twins that longer videos take the seconds of the shortest, so that no position id is
    new to them."""

    @property
    def name(self) -> str:
        """Name of the files with the result."""
        return "study_scaled" if self.scale_time else "study"

    def time_scale(self, length: int) -> float:
        """The factor on the seconds of a video of this length, as the twins are told them."""
        return min(self.lengths) / length if self.scale_time else 1.0

    def answers(self, run: "Run", out: Path, length: int) -> Path:
        """Folder of the answers of a twin about videos of a length."""
        name = "answers" if self.time_scale(length) == 1 else "answers-scaled"
        return out / name / run.name / str(length)

    def runs(self, stage: Stage) -> Iterator["Run"]:
        """The runs of a stage."""
        for seed in self.seeds:
            for attention in stage.attentions:
                yield Run(stage=stage.name, seed=seed, attention=attention)

    def all_runs(self) -> list["Run"]:
        """All runs, in an order in which they can be trained."""
        return [run for stage in self.stages for run in self.runs(stage)]

    def twins(self) -> list["Run"]:
        """The runs whose models answer the questions."""
        return list(self.runs(self.stages[-1]))

    def before(self, run: "Run") -> list["Run"]:
        """The dense runs of the earlier stages that lead to a run, in order."""
        names = [stage.name for stage in self.stages]
        earlier = names[: names.index(run.stage)]
        return [Run(stage=name, seed=run.seed, attention="dense") for name in earlier]

    def base_of(self, run: "Run", out: Path) -> str:
        """What a run starts from: the dense model of its seed in the stage before."""
        before = self.before(run)
        return str(before[-1].model(out)) if before else self.base

    def is_done(self, run: "Run", out: Path) -> bool:
        """Whether a run has its model, or all runs that start from that model are done."""
        if run.model(out).is_dir():
            return True
        after = [one for one in self.all_runs() if self.before(one)[-1:] == [run]]
        return bool(after) and all(self.is_done(one, out) for one in after)

    def settings_of(self, run: "Run", out: Path) -> list[str]:
        """The values of `--set` for a run."""
        chosen = [
            f"model.base={self.base_of(run, out)}",
            f"data.manifest={data_folder(out, run.stage)}",
            f"attention.kind={run.attention}",
            f"run.seed={run.seed}",
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
    attention: Attention

    @property
    def name(self) -> str:
        """Name of the run, also in file names."""
        return f"{self.stage}-{self.seed}-{self.attention}"

    def folder(self, out: Path) -> Path:
        """Its folder."""
        return out / "runs" / self.name

    def model(self, out: Path) -> Path:
        """Folder of its trained model, if it is finished."""
        return self.folder(out) / MODEL


def data_folder(out: Path, stage: str) -> Path:
    """Folder of the manifest of a stage."""
    return out / "data" / stage
