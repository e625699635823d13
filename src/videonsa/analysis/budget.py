"""`budget`: selected blocks against window at one budget, and the budget itself (paper Fig. 3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from videonsa.analysis.arms import Comparison, compare_arms, percent, told_difference
from videonsa.analysis.asked import Asked
from videonsa.analysis.counted_keys import block_tokens, mean_keys
from videonsa.analysis.finding import Finding, Measuring, Progress
from videonsa.errors import UsageError
from videonsa.models.methods.nsa import NSA
from videonsa.ops.spec import NSASpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """Which points are measured, beside the model's own."""

    shares: tuple[float, ...] = (0.0, 0.5, 0.9)
    """Of the keys that go to selected blocks, at the model's own K; one block at least."""
    factors: tuple[float, ...] = (0.5, 2.0, 4.0)
    """On the number of blocks and on the window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetPoint:
    """A number of blocks and a window."""

    blocks: int
    window: int
    keys: int
    """K = n * s + w, as the paper counts: without compressed keys."""
    compressed_keys: float
    """Mean over the vision tokens of the first video; the paper leaves them out."""
    same_budget: bool
    """Whether K is the model's own, within half a block."""


@dataclass(frozen=True, kw_only=True)
class Budget(Finding):
    """Accuracy and agreement at each point, without retraining."""

    name = "budget"
    options: ClassVar[type] = BudgetOptions
    size = (9.0, 5.0)

    block_tokens: int
    points: tuple[BudgetPoint, ...]
    """One for each arm; the first is the model's own."""
    compared: Comparison

    @classmethod
    def measure(
        cls, qa: "VideoQA", asked: Asked, options: BudgetOptions, *, progress: Progress
    ) -> "Budget":
        """See `Finding`.

        Raises:
            UsageError: a model without NSA.
        """
        measuring, own = Measuring(qa, asked, options), qa.model.method
        if not isinstance(own, NSA):
            raise UsageError(f"budget with method {own.full_name!r}: want weights with gates, nsa")
        vision = asked.videos()[0].encode(qa, None)
        frames = max(vision.grid[0], 1)
        per_frame = len(vision.features) // frames
        size = block_tokens(own.spec, per_frame)
        chosen = budget_points(own.spec, size, options)
        arms = [
            (
                f"n {blocks}, w {window}",
                own.with_options(num_selected_blocks=blocks, window_size=window),
            )
            for blocks, window in chosen
        ]
        compared = compare_arms(qa, asked, arms, progress=progress)
        measuring.note(("no point but the first is one that the weights were trained with",))
        _, compressed = mean_keys(own, num_tokens=len(vision.features), tokens_per_frame=per_frame)
        keys = [blocks * size + window for blocks, window in chosen]
        return cls(
            facts=measuring.facts(),
            block_tokens=size,
            points=tuple(
                BudgetPoint(
                    blocks=blocks,
                    window=window,
                    keys=key,
                    compressed_keys=compressed,
                    same_budget=abs(key - keys[0]) <= size / 2,
                )
                for (blocks, window), key in zip(chosen, keys, strict=True)
            ),
            compared=compared,
        )

    def draw(self, figure: "Figure", look: "Look") -> None:
        """See `Finding`."""
        allocation, budget = figure.subplots(1, 2, sharey=True)
        same = [place for place, one in enumerate(self.points) if one.same_budget]
        wider = [0, *(place for place, one in enumerate(self.points) if not one.same_budget)]
        size, own = self.block_tokens, self.points[0].keys
        shares = [100 * x.blocks * size / x.keys for x in self.points]
        self._mark(allocation, look, same, shares)
        allocation.set_xlabel("keys in selected blocks, percent of K")
        allocation.set_ylabel("right answers, percent" if self._known else "same replies, percent")
        look.clean(allocation, title=f"At K = {own} keys", remark=self._remark())
        self._mark(budget, look, wider, [float(x.keys) for x in self.points])
        budget.set_xscale("log")
        budget.minorticks_off()
        ticks = sorted({self.points[place].keys for place in wider})
        budget.set_xticks(ticks, [str(one) for one in ticks])
        budget.set_xlabel("K, selected and window keys of a vision token")
        look.clean(
            budget,
            title="The budget itself",
            remark=f"beside {self.points[0].compressed_keys:.0f} compressed keys, not in K",
        )

    @property
    def _known(self) -> bool:
        return self.compared.arms[0].accuracy is not None

    def _remark(self) -> str:
        return f"{self.compared.num_questions} questions, {self.compared.num_videos} videos"

    def _mark(self, axes: "Axes", look: "Look", places: list[int], x: list[float]) -> None:
        for place in places:
            arm, point = self.compared.arms[place], self.points[place]
            value = arm.accuracy or arm.agreement
            colour = look.series[0] if place else look.text
            axes.plot(x[place], 100 * value.value, marker="o", color=colour)
            if value.low is not None and value.high is not None:
                axes.vlines(x[place], 100 * value.low, 100 * value.high, color=colour)
            axes.annotate(
                f"n {point.blocks}\nw {point.window}",
                (x[place], 100 * value.value),
                (6, -4),
                textcoords="offset points",
                fontsize=7.5,
                color=look.muted,
            )
        if self.compared.guessing.chance is not None:
            axes.axhline(100 * self.compared.guessing.chance, color=look.muted, linestyle=":")

    def sentences(self) -> tuple[str, ...]:
        """See `Finding`."""
        first, *others = self.compared.arms
        own = self.points[0]
        return (
            f"As trained ({first.label}): {percent(first.accuracy)} right, K = {own.keys} keys in "
            f"blocks of {self.block_tokens} tokens and the window, and {own.compressed_keys:.0f} "
            "compressed keys beside them.",
            *(told_difference(one, than="that point") for one in others),
        )


def budget_points(spec: NSASpec, size: int, options: BudgetOptions) -> list[tuple[int, int]]:
    """Blocks and window of each point, the model's own first, each once.

    Args:
        spec: the model's own.
        size: tokens of a block.
        options: which others.
    """
    own = spec.num_selected_blocks, spec.window_size
    keys = own[0] * size + own[1]
    forced = spec.num_init_blocks + spec.num_local_blocks + 1
    points = [own]
    for share in options.shares:
        blocks = min(max(forced, round(share * keys / size)), (keys - 1) // size)
        points.append((blocks, keys - blocks * size))
    points += [
        (max(forced, round(factor * own[0])), max(1, round(factor * own[1])))
        for factor in options.factors
    ]
    return [one for one in dict.fromkeys(points) if one[0] >= forced]
