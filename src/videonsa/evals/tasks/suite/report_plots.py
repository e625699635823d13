"""The plots of a report, as PNG; they need matplotlib (the extra 'eval')."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from videonsa.errors import UsageError
from videonsa.evals.scoring import Accuracy
from videonsa.evals.tasks.suite.report_markdown import length_text
from videonsa.evals.tasks.suite.suite_run import BLIND, GREYED
from videonsa.evals.tasks.suite.suite_summary import ALL, POSITION_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTH, POSITION, KIND, ATTENTION = (
    "accuracy-by-length.png",
    "accuracy-by-position.png",
    "accuracy-by-kind.png",
    "accuracy-by-attention.png",
)
_COLOURS = {
    "whole": "#0072b2",
    "no-compressed": "#e69f00",
    "no-selected": "#009e73",
    "no-window": "#cc79a7",
    "none": "#d55e00",
    GREYED: "#999999",
    BLIND: "#000000",
}
_MARKERS = dict(zip(_COLOURS, "osD^vPX", strict=True))
_SPREAD = 5
"""Points between the marks of two conditions at one length, so that none hides another."""
_LEAST_SHARE = 0.1
"""Percent of attention below which the axis is linear, so that it has a zero."""
_TOP, _BOTTOM = 103, -3
"""Ends of the percent axis: marks at 0 and 100 are whole."""


def draw_plots(result: Mapping[str, Any]) -> dict[str, bytes]:
    """File name and PNG of each plot.

    Raises:
        UsageError: matplotlib is not installed.
    """
    drawers: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
        LENGTH: _draw_lengths,
        POSITION: _draw_positions,
        KIND: _draw_kinds,
        ATTENTION: _draw_attention,
    }
    if not _attention_costs(result):
        del drawers[ATTENTION]
    return {name: _drawn(draw, result) for name, draw in drawers.items()}


def _drawn(draw: Callable[["Figure", Mapping[str, Any]], None], result: Mapping[str, Any]) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib: pip install 'videonsa[eval]', then run the same command again"
        ) from error
    figure = Figure(figsize=(8.6, 5.0), dpi=120, layout="constrained")
    draw(figure, result)
    content = io.BytesIO()
    # Without the version of matplotlib in it.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _title(axes: "Axes", title: str, result: Mapping[str, Any]) -> None:
    axes.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold")
    detail = (
        f"{result['model']}, difficulty {result['difficulty']}, style {result['style']}; "
        "95 % Wilson intervals"
    )
    axes.text(0, 1.02, detail, transform=axes.transAxes, fontsize=9, color="#555555")


def _bars(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Percent right, and how far the interval reaches below and above."""
    scores = [Accuracy(x["right"], x["total"]) for x in entries]
    # At 0 and 1 rounding could put the share outside its interval.
    low = [100 * max(0.0, score.share - score.interval[0]) for score in scores]
    high = [100 * max(0.0, score.interval[1] - score.share) for score in scores]
    return [100 * score.share for score in scores], [low, high]


def _mark(
    axes: "Axes",
    name: str,
    places: Sequence[float],
    entries: Sequence[Mapping[str, Any]],
    *,
    size: float = 5,
    aside: float = 0,
) -> Any:
    """A condition's scores with their intervals, so many points beside their places."""
    from matplotlib.transforms import ScaledTranslation

    values, spans = _bars(entries)
    moved = ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    return axes.errorbar(
        places,
        values,
        yerr=spans,
        label=name,
        color=_COLOURS[name],
        marker=_MARKERS[name],
        linestyle=":" if name in (GREYED, BLIND) else "-",
        linewidth=1.2,
        capsize=3,
        markersize=size,
        transform=axes.transData + moved,
    )


def _percent_axis(axes: "Axes", handles: Sequence[Any]) -> None:
    axes.set_ylim(_BOTTOM, _TOP)
    axes.set_ylabel("right answers, percent")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e3e3")
    axes.set_axisbelow(True)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _draw_lengths(figure: "Figure", result: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    lengths = result["lengths"]
    scores = {(x["condition"], x["length"]): x for x in result["scores"] if x["kind"] == ALL}
    handles = []
    aside = -_SPREAD * (len(result["conditions"]) - 1) / 2
    for name in result["conditions"]:
        found = [(i, x) for i, n in enumerate(lengths) if (x := scores.get((name, str(n))))]
        places = [i for i, _ in found]
        handles.append(_mark(axes, name, places, [x for _, x in found], aside=aside))
        aside += _SPREAD
    guesses = {x["length"]: x for x in result["guessing"] if x["kind"] == ALL}
    known = [(i, x) for i, n in enumerate(lengths) if (x := guesses.get(str(n)))]
    for label, line, values in (
        (
            "best constant,\nafter the fact",
            "--",
            [100 * x["constant"] / x["total"] for _, x in known],
        ),
        ("option at random", "-.", [100 * x["chance"] for _, x in known]),
    ):
        handles += axes.plot(
            [i for i, _ in known],
            values,
            label=label,
            linestyle=line,
            color="#777777",
            linewidth=1.2,
            marker="_" if len(known) == 1 else "",
            markersize=24,
        )
    counts = [result["videos"].get(str(length), 0) for length in lengths]
    videos = [f"{count} video{'s' * (count != 1)}" for count in counts]
    names = [f"{length_text(n)}\n{text}" for n, text in zip(lengths, videos, strict=True)]
    axes.set_xticks(range(len(lengths)), names)
    axes.set_xlim(-0.4, len(lengths) - 0.6)
    axes.set_xlabel("length of the video in tokens")
    _percent_axis(axes, handles)
    _title(axes, "Accuracy against length", result)


def _draw_positions(figure: "Figure", result: Mapping[str, Any]) -> None:
    found = {
        (length_text(x["length"]), x["bin"]): x
        for x in result["positions"]
        if x["condition"] == result["main"]
    }
    width = 100 // POSITION_BINS
    _heat_map(
        figure,
        result,
        title=f"Accuracy against position of the evidence: {result['main']}",
        rows=[length_text(length) for length in result["lengths"]],
        columns=list(range(POSITION_BINS)),
        cells=found,
        column_names=[f"{width * i}-{width * (i + 1)} %" for i in range(POSITION_BINS)],
        x_label="position of the evidence along the video",
        y_label="length of the video in tokens",
    )


def _draw_kinds(figure: "Figure", result: Mapping[str, Any]) -> None:
    lengths = list(map(str, result["lengths"]))
    found = {
        (x["kind"], x["length"]): x for x in result["scores"] if x["condition"] == result["main"]
    }
    chance = {x["kind"]: x["chance"] for x in result["guessing"] if x["length"] == ALL}
    _heat_map(
        figure,
        result,
        title=f"Accuracy by kind of question: {result['main']}",
        rows=result["kinds"],
        columns=lengths,
        cells=found,
        row_names=[f"{kind} (chance {100 * chance[kind]:.0f})" for kind in result["kinds"]],
        column_names=[length_text(length) for length in lengths],
        x_label="length of the video in tokens",
        y_label="",
    )


def _heat_map(
    figure: "Figure",
    result: Mapping[str, Any],
    *,
    title: str,
    rows: Sequence[Any],
    columns: Sequence[Any],
    cells: Mapping[tuple[Any, Any], Mapping[str, Any]],
    column_names: Sequence[str],
    x_label: str,
    y_label: str,
    row_names: Sequence[str] | None = None,
) -> None:
    axes = figure.add_subplot()
    values = [
        [
            100 * x["right"] / x["total"] if (x := cells.get((r, c))) else float("nan")
            for c in columns
        ]
        for r in rows
    ]
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            entry = cells.get((row, column))
            if entry is None:
                axes.text(j, i, "none asked", ha="center", va="center", color="#555555")
                continue
            score = Accuracy(entry["right"], entry["total"])
            low, high = score.interval
            axes.text(
                j,
                i,
                f"{100 * score.share:.0f}\n{100 * low:.0f}-{100 * high:.0f}, n={entry['total']}",
                ha="center",
                va="center",
                fontsize=8,
                color="#000000" if score.share > 0.6 else "#ffffff",
            )
    axes.set_xticks(range(len(columns)), column_names)
    axes.set_yticks(range(len(rows)), row_names or [str(row) for row in rows])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    figure.colorbar(image, ax=axes, label="right answers, percent")
    _title(axes, title, result)


def _attention_costs(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The costs of the conditions in which a video is seen, least attention first."""
    seen = [
        x
        for x in result["costs"]
        if x["attention_fraction"] is not None and x["condition"] != GREYED
    ]
    return sorted(seen, key=lambda x: float(x["attention_fraction"]))


def _draw_attention(figure: "Figure", result: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    scores = {(x["condition"], x["length"]): x for x in result["scores"] if x["kind"] == ALL}
    handles = []
    size = 10.0  # smaller from one to the next: two at one place are both seen
    for name in result["conditions"]:
        found = [x for x in _attention_costs(result) if x["condition"] == name]
        if not found:
            continue
        shares = [100 * x["attention_fraction"] for x in found]
        entries = [scores[name, str(x["length"])] for x in found]
        handles.append(_mark(axes, name, shares, entries, size=size))
        size -= 1.5
        if name != result["main"]:
            continue
        for share, entry, cost in zip(shares, entries, found, strict=True):
            value = 100 * Accuracy(entry["right"], entry["total"]).interval[1]
            axes.annotate(
                length_text(cost["length"]),
                (share, value),
                (0, 8),
                textcoords="offset points",
                ha="center",
                color=_COLOURS[name],
            )
    axes.set_xscale("symlog", linthresh=_LEAST_SHARE)
    axes.set_xlim(-_LEAST_SHARE / 3, 160)
    ticks = [0, _LEAST_SHARE, 1, 10, 100]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("attention computed, percent of dense causal attention, 2K / (L - 1)")
    _percent_axis(axes, handles)
    _title(axes, "Accuracy against attention computed", result)
