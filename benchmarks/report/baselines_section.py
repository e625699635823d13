"""Every method on the suite, accuracy against attention computed (`benchmarks.baselines`)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from videonsa.errors import UsageError
from videonsa.evals.markdown import provenance, table

BASELINES = "baselines"
"""Name of the file of results, without suffix."""
FIGURE = "baselines_accuracy.png"
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#a6761d", "#7570b3", "#66a61e", "#e7298a"),
)
_MARKERS = "osD^vP<>Xp"
_DENSE = "dense"
_LEGEND_COLUMNS = 6


def render_baselines(result: Mapping[str, Any]) -> str:
    """Accuracy of each setting by length, and a sentence for each method."""
    design = result["design"]
    parts = [
        "## Baselines on the suite, at equal attention computed\n\n"
        f"The models of the study's stage `{design['stage']}` ([study.md](study.md)); the dense "
        "one answers under every training-free method, its NSA twin under `nsa`. Of each video of "
        f"the second suite's test split all are asked the same {_questions(design['questions'])}, "
        "each in a prompt of its own "
        "([how](../benchmarks/README.md#baselines)).\n\n"
        f"![Accuracy against attention computed]({FIGURE})\n",
        "".join(f"- {sentence}\n" for sentence in result["sentences"].values()),
        *(_length(one) for one in result["lengths"]),
        "".join(f"- Note: {line}.\n" for line in result["notes"]),
        "".join(f"- Left out: {line}.\n" for line in result["left_out"]),
        f"All processes together took {result['seconds']:,.0f} s, {result['answerers']} of them on "
        f"a GPU.\n\nHow: {result['how']}.\n\n{provenance(result['machine'])}\n",
    ]
    return "\n".join(part for part in parts if part)


def _questions(count: int) -> str:
    return "question" if count == 1 else f"{count} questions"


def _length(one: Mapping[str, Any]) -> str:
    """The table of a length; bold is what each method is compared by."""
    equal = {entry["setting"] for entry in one["equal"].values()}
    less = {entry["setting"] for entry in one["equal"].values() if entry["computes_less"]}
    constant = 100 * sum(one["constant"].values()) / len(one["constant"])
    rows = [_row(cell, cell["setting"] in equal) for cell in one["cells"]]
    head = ["setting", "attention, %", "kept, %", "right, %", "likeliest, %", "less than dense"]
    remark = (
        f"\nNo setting of {', '.join(f'`{name}`' for name in sorted(less))} computes as much.\n"
        if less
        else ""
    )
    bold = (
        "Bold: of each method, the cheapest setting that computes as much attention as NSA. "
        if equal
        else ""
    )
    return (
        f"### {one['length']:,} video tokens\n\n{one['videos']} videos, {one['questions']:,} "
        f"questions; the best constant answers have {constant:.1f} % right. {bold}Differences are "
        "in points, paired.\n\n" + table(head, rows) + remark
    )


def _row(cell: Mapping[str, Any], is_equal: bool) -> list[str]:
    name = f"`{cell['setting']}`"
    return [
        f"**{name}**" if is_equal else name,
        f"{100 * cell['attention']:.3g}",
        f"{100 * cell['kept']:.3g}",
        _spread(cell["accuracy"], 100),
        f"{100 * cell['likeliest']['value']:.1f}",
        "-" if cell["difference"] is None else _spread(cell["difference"]["points"], 1, sign="+"),
    ]


def _spread(found: Mapping[str, float], scale: int, *, sign: str = "") -> str:
    value, low, high = (f"{scale * found[name]:{sign}.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def draw_baselines(result: Mapping[str, Any]) -> bytes:
    """Accuracy against attention computed, a panel for each length, as PNG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib: pip install 'videonsa[eval]', then run the same command again"
        ) from error
    lengths = result["lengths"]
    figure = Figure(figsize=(4.2 * max(len(lengths), 2), 4.8), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    methods = [name for name in result["methods"] if name != _DENSE]
    for axes, one in zip(panels, lengths, strict=True):
        axes.set_title(f"{one['length']:,} video tokens", loc="left", fontsize=11)
        _draw_dense(axes, one["cells"])
        for place, method in enumerate(methods):
            _draw_method(axes, one["cells"], method, place)
        axes.set_xscale("log")
        axes.set_xlabel("attention computed, percent of dense")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e3e3e3")
    panels[0].set_ylabel("right answers, percent, mean over kinds")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(_LEGEND_COLUMNS, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    content = io.BytesIO()
    # Without the version of matplotlib, so that equal pictures are equal files.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _draw_dense(axes: Any, cells: Sequence[Mapping[str, Any]]) -> None:
    """A line across the panel, with its interval."""
    for cell in cells:
        if cell["method"] == _DENSE:
            value, low, high = (100 * cell["accuracy"][name] for name in ("value", "low", "high"))
            axes.axhline(value, color="#333333", linewidth=1.4, label=_DENSE)
            axes.axhspan(low, high, color="#333333", alpha=0.1, linewidth=0)


def _draw_method(axes: Any, cells: Sequence[Mapping[str, Any]], method: str, place: int) -> None:
    """The settings of a method joined by a line; the published one is filled."""
    own = sorted(
        (cell for cell in cells if cell["method"] == method), key=lambda cell: cell["attention"]
    )
    colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
    shares = [100 * cell["attention"] for cell in own]
    right = [100 * cell["accuracy"]["value"] for cell in own]
    size = 36
    if method == "nsa":
        marker, size = "*", 110
    axes.plot(shares, right, color=colour, linewidth=1.2, alpha=0.8)
    faces = [colour if cell["published"] else "white" for cell in own]
    axes.scatter([], [], color=colour, marker=marker, s=size, label=method)
    axes.scatter(
        shares,
        right,
        s=size,
        c=faces,
        edgecolors=colour,
        marker=marker,
        zorder=3,
    )
