"""The study of NSA and dense twins in docs/results.md: from `benchmarks.study`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from videonsa.errors import UsageError
from videonsa.evals.markdown import provenance, table
from videonsa.evals.scoring import Accuracy

FILES = ("study", "study_scaled")
"""Names of the files of results, without suffix: without and with `--scale-time`."""
_ALL = "all"
_NAMES = {"nsa": "NSA", "dense": "dense"}
_SCALED = (
    "The models are told that longer videos take the time of the shortest, so that no position id "
    "is new to them.\n\n"
)
_COLOURS = {"nsa": "#0072b2", "dense": "#d55e00"}


def render_study(result: Mapping[str, Any]) -> str:
    """Accuracy of the twins by length and kind of question, and how each run was trained."""
    seeds = result["design"]["seeds"]
    scaled = _is_scaled(result)
    attention = result["attention"]
    videos = result["design"]["samples"]
    trained = [run for run in result["runs"] if run["attention"] == "nsa"]
    return (
        f"## NSA and dense twins{': time scaled' if scaled else ''}\n\n"
        f"{len(seeds)} pairs of models, trained alike from the same weights, that differ only in "
        "how vision tokens attend ([study.md](study.md)); "
        f"{videos} videos of each length, {len(_kinds(result))} questions about each, free "
        "answers. Under NSA a vision token attends to at most "
        f"{attention['keys']} keys (n = {attention['num_selected_blocks']} frames, "
        f"w = {attention['window_size']}) and to the compressed ones. The twins were trained on "
        f"videos of {result['design']['lengths'][0]:,} tokens.\n\n"
        + (_SCALED if scaled else "")
        + f"![{_alternative()}]({figure_name(result)})\n\n"
        + _lengths(result)
        + "\nShare attended: (query, key) pairs that NSA computes, as a share of those of dense "
        "causal attention over the video; in brackets with the compressed keys. Constant: the best "
        "single answer to all questions of a kind. Differences are in points, paired "
        "question by question; ± is half of the 95 % interval, over seeds (Student) and over "
        "questions (normal).\n\n"
        "### Twins by kind of question\n\n"
        + _by_kind(result)
        + "\n### What was trained\n\n"
        + _runs(result)
        + f"\nMean gates at the end of {trained[0]['name']}: {_gates(trained[0]['gates'])}.\n\n"
        + _unclean(result)
        + f"{provenance(result['machine'])}\n"
    )


def _unclean(result: Mapping[str, Any]) -> str:
    if not result["machine"].get("dirty"):
        return ""
    return "**Measured with uncommitted changes on top of the commit named here.** "


def figure_name(result: Mapping[str, Any]) -> str:
    """File name of the plot."""
    return f"{FILES[_is_scaled(result)]}_accuracy.png"


def _is_scaled(result: Mapping[str, Any]) -> bool:
    return bool(result["design"].get("scale_time", False))


def _alternative() -> str:
    return "Accuracy of NSA and dense twins against length"


def _kinds(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(x["kind"] for x in result["constant"] if x["kind"] != _ALL))


def _pooled(result: Mapping[str, Any], attention: str, length: int, kind: str) -> Accuracy:
    """Accuracy over all seeds."""
    found = [
        x
        for x in result["scores"]
        if (x["attention"], x["length"], x["kind"]) == (attention, length, kind)
    ]
    return Accuracy(sum(x["right"] for x in found), sum(x["total"] for x in found))


def _constant(result: Mapping[str, Any], length: int, kind: str) -> Accuracy:
    (found,) = (x for x in result["constant"] if (x["length"], x["kind"]) == (length, kind))
    return Accuracy(found["right"], found["total"])


def _percent(one: Accuracy) -> str:
    low, high = one.interval
    return f"{100 * one.share:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _lengths(result: Mapping[str, Any]) -> str:
    head = ["video tokens", "share attended, %", "constant", *_NAMES.values()]
    head += ["NSA - dense", "± seeds", "± questions", "of each seed"]
    rows = []
    for length in result["design"]["lengths"]:
        share = result["attention"]["shares"][str(length)]
        (gap,) = (x for x in result["differences"] if (x["length"], x["kind"]) == (length, _ALL))
        rows.append(
            [
                f"{length:,}",
                f"{100 * share['selected_and_window']:.1f} ({100 * share['all']:.1f})",
                f"{100 * _constant(result, length, _ALL).share:.1f}",
                *(_percent(_pooled(result, name, length, _ALL)) for name in _NAMES),
                f"{gap['points']:+.1f}",
                *(_half(gap[name]) for name in ("over_seeds", "over_questions")),
                ", ".join(f"{value:+.1f}" for value in gap["of_seeds"]),
            ]
        )
    return table(head, rows)


def _half(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _by_kind(result: Mapping[str, Any]) -> str:
    lengths = result["design"]["lengths"]
    head = ["kind", *(f"{length:,}: constant, NSA, dense" for length in lengths)]
    rows = []
    for kind in _kinds(result):
        cells = [
            ", ".join(
                f"{100 * one.share:.1f}"
                for one in (
                    _constant(result, length, kind),
                    *(_pooled(result, name, length, kind) for name in _NAMES),
                )
            )
            for length in lengths
        ]
        rows.append([kind, *cells])
    return table(head, rows)


def _runs(result: Mapping[str, Any]) -> str:
    head = ["run", "steps", "learning rate", "million tokens", "videos", "loss: first, last"]
    return table(
        head,
        [
            [
                f"`{run['name']}`",
                f"{run['steps']:,}",
                f"{run['learning_rate']:g}",
                f"{run['tokens'] / 1e6:.1f}",
                f"{run['videos']:,}",
                f"{run['losses'][0][1]:.2f}, {run['losses'][-1][1]:.2f}",
            ]
            for run in result["runs"]
        ],
    )


def _gates(gates: Mapping[str, float]) -> str:
    """Layer by layer, each branch in turn."""
    return ", ".join(f"{name.removeprefix('gates/')} {value:.2f}" for name, value in gates.items())


def draw_study(result: Mapping[str, Any]) -> bytes:
    """Accuracy against length as PNG: a mark for each model, a line through the means.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib: pip install 'videonsa[eval]', then run the same command again"
        ) from error
    lengths = result["design"]["lengths"]
    figure = Figure(figsize=(8.6, 4.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    scaled = ", time scaled" if _is_scaled(result) else ""
    title = f"NSA and dense twins on the suite{scaled}"
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
    for name, label in _NAMES.items():
        for x, y in _marks(result, name):
            axes.plot(x, y, "o", color=_COLOURS[name], markersize=4, alpha=0.5)
        means = [100 * _pooled(result, name, length, _ALL).share for length in lengths]
        axes.plot(lengths, means, color=_COLOURS[name], label=label)
    constant = [100 * _constant(result, length, _ALL).share for length in lengths]
    axes.plot(lengths, constant, ":", color="#555555", label="best constant answer")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("video tokens; trained on the shortest")
    axes.set_ylabel("right answers, percent")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e3e3")
    axes.legend(frameon=False)
    content = io.BytesIO()
    # Without the version of matplotlib, so that equal pictures are equal files.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _marks(result: Mapping[str, Any], attention: str) -> Sequence[tuple[int, float]]:
    return [
        (x["length"], 100 * x["right"] / x["total"])
        for x in result["scores"]
        if (x["attention"], x["kind"]) == (attention, _ALL)
    ]
