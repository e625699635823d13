"""Drawings that several findings share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from videonsa.analysis.arms import Comparison
from videonsa.evals.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look


def draw_arms(figure: "Figure", look: "Look", compared: Comparison, *, title: str) -> None:
    """Accuracy of each arm as a row, or agreement where no answer is known, beside guessing."""
    axes = figure.add_subplot()
    known = compared.arms[0].accuracy is not None
    values = [one.accuracy or one.agreement for one in compared.arms]
    labels = [one.label for one in compared.arms]
    mark_rows(axes, look, labels, values)
    guesses = compared.guessing
    if known and guesses.chance is not None:
        axes.axvline(100 * guesses.chance, color=look.muted, linestyle=":", label="chance")
    if known and guesses.constant is not None:
        axes.axvline(
            100 * guesses.constant,
            color=look.muted,
            linestyle="--",
            label="best constant answers, after the fact",
        )
    if known:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=8.5)
    what = "right answers" if known else "replies that are those of the first"
    axes.set_xlabel(f"{what}, percent, with 95 % intervals over videos")
    axes.set_xlim(-2, 102)
    shortest, longest = compared.prompt_tokens
    span = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    look.clean(
        axes,
        title=title,
        remark=f"{compared.num_questions} questions about {compared.num_videos} videos, prompts of "
        f"{span} tokens",
    )
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=look.grid)


def mark_rows(
    axes: "Axes", look: "Look", labels: Sequence[str], values: Sequence[Interval]
) -> None:
    """Shares in percent, one a row from the top, with their intervals."""
    for place, one in enumerate(values):
        colour = look.series[0] if place else look.text
        axes.plot(100 * one.value, place, marker="o", color=colour)
        if one.low is not None and one.high is not None:
            axes.hlines(place, 100 * one.low, 100 * one.high, color=colour, linewidth=1.6)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
