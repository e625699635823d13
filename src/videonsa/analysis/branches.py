"""`branches`: how vision tokens weigh the three branches, and what is lost without some."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from videonsa.analysis.arms import SHARE, Comparison, compare_arms, percent, told_difference
from videonsa.analysis.asked import Asked, AskedVideo
from videonsa.analysis.drawing import draw_arms
from videonsa.analysis.finding import Finding, Measuring, NoOptions, Progress
from videonsa.analysis.reading import read
from videonsa.errors import UsageError
from videonsa.evals.intervals import Interval, mean_over_videos
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.nsa import NSA, StaticGates
from videonsa.models.recorder.gate_statistics import GateStatistics
from videonsa.ops.spec import BRANCHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA

_ALL = "all"
_PERMUTATIONS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchGates:
    """Gates of one branch in one layer, over the vision tokens of the videos of a task."""

    task: str
    """`all`: of all videos."""
    layer: int
    branch: str
    mean: Interval
    """Over all heads; the interval is over videos."""
    quartiles: tuple[float, float, float]
    """Of tokens and heads together, known to 1/512."""
    head_means: tuple[float, ...]
    head_quartiles: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Similarity:
    """How alike the heads of a layer set the gate of a branch, a mean over pairs of heads."""

    layer: int
    branch: str
    cosine: float | None
    correlation: float | None
    """0 of heads that have nothing to do with each other. None: no two gates vary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """Mean gates of each video (all layers, heads, branches), on two principal components."""

    tasks: tuple[str, ...]
    """Of each video."""
    places: tuple[tuple[float, float], ...]
    explained: tuple[float, float]
    """Shares of the variance."""
    between: float | None
    """Share of the variance that lies between tasks; None of one task."""
    chance: float | None
    """The same with tasks shuffled, the mean."""
    probability: float | None
    """How often shuffled tasks reach as much."""


@dataclass(frozen=True, kw_only=True)
class Branches(Finding):
    """Gates, knock-outs and static gates."""

    name = "branches"
    options: ClassVar[type] = NoOptions
    size = (9.0, 14.0)

    gates: tuple[BranchGates, ...]
    similarity: tuple[Similarity, ...]
    projection: Projection
    compared: Comparison
    """As trained, each branch ablated, two ablated, all, and static mean gates."""

    @classmethod
    def measure(
        cls, qa: "VideoQA", asked: Asked, options: NoOptions, *, progress: Progress
    ) -> "Branches":
        """See `Finding`; static gates are the means over the same videos.

        Raises:
            UsageError: a model without gates of its own.
        """
        measuring, own = Measuring(qa, asked, options), qa.model.method
        if not isinstance(own, NSA) or own.static_gates is not None:
            raise UsageError(
                f"branches with method {own.full_name!r}: want weights with gates, nsa"
            )
        videos, seen = asked.videos(), []
        for place, video in enumerate(videos, start=1):
            progress(f"gates of video {place} of {len(videos)}: {video.task}")
            recorder = GateStatistics()
            read(qa, video.encode(qa, None), video.questions[:1], recorder=recorder)
            seen.append(recorder)
        means = _together(seen).means().float()
        arms = [("as trained", own), *_knock_outs(own)]
        arms.append(("static mean gates", replace(own, static_gates=StaticGates(means))))
        compared = compare_arms(qa, asked, arms, progress=progress)
        measuring.note(
            (
                "vision tokens never see the question, and text attends densely whatever the "
                "gates: they can differ between tasks only where the videos do",
                "only text is read from the last layer, so no gradient reaches its gates of vision "
                "tokens: they are untrained",
                "static gates are the means over these videos, one for each layer, head and "
                "branch; the paper took 1,000 training examples",
            )
        )
        return cls(
            facts=measuring.facts(),
            gates=_gates(videos, seen),
            similarity=_similarity(_together(seen)),
            projection=project([video.task for video in videos], [one.means() for one in seen]),
            compared=compared,
        )

    def draw(self, figure: "Figure", look: "Look") -> None:
        """See `Finding`."""
        rows: Any = figure.subfigures(3, 1, height_ratios=(1, 1, 1.1))
        gates, alike = rows[0].subplots(1, 2)
        self._draw_gates(gates, look)
        self._draw_similarity(alike, look)
        self._draw_projection(rows[1].subplots(), look)
        draw_arms(rows[2], look, self.compared, title="Branches ablated, and static gates")

    def _draw_gates(self, axes: "Axes", look: "Look") -> None:
        for branch, colour in look.branches.items():
            own = [x for x in self.gates if x.task == _ALL and x.branch == branch]
            layers = [x.layer for x in own]
            axes.plot(layers, [x.mean.value for x in own], color=colour, marker="o", label=branch)
            low, _, high = zip(*(x.quartiles for x in own), strict=True)
            axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel="layer", ylabel="gate of vision tokens", ylim=(0, 1))
        axes.legend(fontsize=8.5)
        look.clean(axes, title="Gates", remark="means; bands from first to third quartile")

    def _draw_similarity(self, axes: "Axes", look: "Look") -> None:
        for branch, colour in look.branches.items():
            own = [x for x in self.similarity if x.branch == branch]
            for name, style in (("cosine", "-"), ("correlation", ":")):
                values = [getattr(x, name) for x in own]
                known = [(x.layer, y) for x, y in zip(own, values, strict=True) if y is not None]
                axes.plot(
                    *zip(*known, strict=True), color=colour, linestyle=style
                ) if known else None
        axes.axhline(0, color=look.muted, linewidth=0.8)
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel="layer", ylabel="mean over pairs of heads")
        look.clean(
            axes, title="Heads alike", remark="solid: cosine; dotted: correlation (0 by chance)"
        )

    def _draw_projection(self, axes: "Axes", look: "Look") -> None:
        found = self.projection
        for number, task in enumerate(dict.fromkeys(found.tasks)):
            own = [xy for one, xy in zip(found.tasks, found.places, strict=True) if one == task]
            colour = look.series[number % len(look.series)]
            axes.scatter(*zip(*own, strict=True), color=colour, label=task)
        first, second = (100 * share for share in found.explained)
        axes.set(
            xlabel=f"first component, {first:.0f} % of the variance",
            ylabel=f"second, {second:.0f} %",
        )
        axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
        look.clean(axes, title="Mean gates of each video", remark=_separation(found))

    def sentences(self) -> tuple[str, ...]:
        """See `Finding`."""
        means = {
            branch: np.mean(
                [x.mean.value for x in self.gates if x.task == _ALL and x.branch == branch]
            )
            for branch in BRANCHES
        }
        stated = ", ".join(f"{branch} {value:.2f}" for branch, value in means.items())
        first, *others = self.compared.arms
        return (
            f"Mean gates of vision tokens over layers and heads: {stated}.",
            f"By task: {_separation(self.projection)}.",
            f"{first.label}: {percent(first.accuracy)} right.",
            *(told_difference(one, than="all three branches") for one in others),
        )


def _knock_outs(own: NSA) -> list[tuple[str, AttentionMethod]]:
    """One ablated, then two, then all."""
    found: list[tuple[str, AttentionMethod]] = []
    for kept in [*combinations(BRANCHES, 2), *combinations(BRANCHES, 1), ()]:
        gone = [branch for branch in BRANCHES if branch not in kept]
        label = f"without {gone[0]}" if len(gone) == 1 else f"{kept[0]} alone" if kept else "none"
        found.append((label, own.with_options(branches=kept)))
    return found


def _together(seen: Sequence[GateStatistics]) -> GateStatistics:
    total = GateStatistics()
    for one in seen:
        total.add(one)
    return total


def _gates(videos: Sequence[AskedVideo], seen: Sequence[GateStatistics]) -> tuple[BranchGates, ...]:
    tasks: dict[str, list[GateStatistics]] = defaultdict(list)
    for video, one in zip(videos, seen, strict=True):
        tasks[video.task].append(one)
    found: list[BranchGates] = []
    for task, own in ((_ALL, list(seen)), *tasks.items()):
        total = _together(own)
        quartiles = total.quartiles(heads_together=True)[:, 0].tolist()
        heads, of_heads = total.means(), total.quartiles()
        for place, layer in enumerate(sorted(total.counts)):
            for number, branch in enumerate(BRANCHES):
                sums = [float(one.sums[layer][:, number].mean()) for one in own]
                counts = [one.counts[layer] for one in own]
                found.append(
                    BranchGates(
                        task=task,
                        layer=layer,
                        branch=branch,
                        mean=mean_over_videos(sums, counts, bounds=SHARE),
                        quartiles=tuple(quartiles[place][number]),
                        head_means=tuple(heads[place, :, number].tolist()),
                        head_quartiles=tuple(map(tuple, of_heads[place, :, number].tolist())),
                    )
                )
    return tuple(found)


def _similarity(total: GateStatistics) -> tuple[Similarity, ...]:
    cosines, correlations = total.similarity()
    return tuple(
        Similarity(
            layer=layer,
            branch=branch,
            cosine=_finite(cosines[place, number]),
            correlation=_finite(correlations[place, number]),
        )
        for place, layer in enumerate(sorted(total.counts))
        for number, branch in enumerate(BRANCHES)
    )


def _finite(value: torch.Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def project(tasks: Sequence[str], means: Sequence[torch.Tensor]) -> Projection:
    """Mean gates of each video on their two principal components, and how far tasks differ.

    Args:
        tasks: of each video.
        means: of each video, `[layers, HQ, 3]`.
    """
    vectors = torch.stack(list(means)).flatten(1).double().numpy()
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    padded = np.pad(left * sizes, ((0, 0), (0, 2)))[:, :2]
    shares = np.pad(sizes**2 / max(float((sizes**2).sum()), 1e-300), (0, 2))[:2]
    between = chance = probability = None
    if len({*tasks}) > 1 and len(tasks) > len({*tasks}) and bool(centred.any()):
        rng, labels = np.random.default_rng(0), np.unique(list(tasks), return_inverse=True)[1]
        between = _between(centred, labels)
        shuffled = [_between(centred, rng.permutation(labels)) for _ in range(_PERMUTATIONS)]
        chance = float(np.mean(shuffled))
        reached = sum(one >= between - 1e-12 for one in shuffled)
        probability = (1 + reached) / (1 + _PERMUTATIONS)
    return Projection(
        tasks=tuple(tasks),
        places=tuple((float(x), float(y)) for x, y in padded),
        explained=(float(shares[0]), float(shares[1])),
        between=between,
        chance=chance,
        probability=probability,
    )


def _between(centred: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Share of the variance that lies between groups."""
    total = sum(
        (labels == one).sum() * float((centred[labels == one].mean(0) ** 2).sum())
        for one in np.unique(labels)
    )
    return float(total / (centred**2).sum())


def _separation(found: Projection) -> str:
    if found.between is None or found.chance is None or found.probability is None:
        return "one task, or one video of each: whether gates differ by task cannot be told"
    verdict = "gates differ" if found.probability < 0.05 else "no difference can be told"
    return (
        f"{100 * found.between:.0f} % of the variance lies between tasks, {100 * found.chance:.0f} "
        f"% if they are shuffled (p = {found.probability:.3f}): {verdict}"
    )
