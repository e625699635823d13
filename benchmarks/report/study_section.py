"""The study in docs/results.md: what NSA recovers of what a window loses (`benchmarks.study`)."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

from videonsa.errors import UsageError
from videonsa.evals.markdown import provenance, table

STUDY = "study"
"""Name of the file of results, without suffix."""
_MEAN = "mean"
_COLOURS = {
    "dense": "#d55e00",
    "nsa": "#0072b2",
    "window": "#999999",
    "random": "#009e73",
    "no-compressed": "#cc79a7",
}
FIGURE = "study_accuracy.png"


def render_study(result: Mapping[str, Any]) -> str:
    """Accuracy of the arms by length and kind of question, and what is recovered."""
    attention, seeds = result["attention"], result["seeds"]
    return (
        "## The study: the suite, by how vision tokens attend\n\n"
        f"{_models(result)} from fresh weights, trained on the second suite up to 16K tokens "
        "([study.md](study.md)); arms of a seed differ in how vision tokens attend in the last two "
        f"stages. Under `nsa` a vision token attends to at most {attention['keys']} keys "
        f"(n = {attention['num_selected_blocks']} frames, w = {attention['window_size']}) and to "
        "the compressed ones; `window` has a window of as many keys and nothing else, `random` "
        "selects frames at random. Free answers unless something else is said; brackets are 95 % "
        f"intervals of a cluster bootstrap over videos{' and seeds' if len(seeds) > 1 else ''}.\n\n"
        f"![Accuracy of the arms against length]({FIGURE})\n\n"
        + _lengths(result)
        + "\nAttended: (query, key) pairs that NSA computes, in percent of dense causal attention; "
        "in brackets with the compressed keys. Constant: the best single answer to all questions "
        "of a kind. Means are over kinds. Recovered: (arm - window) / (dense - window), over the "
        "kinds in which dense attention has 80 % or more and is 10 points above the window. Seen: "
        "the smallest share that would have differed from 0, or from 100 %, in four of five such "
        "studies.\n\n"
        + _differences(result)
        + "".join(_by_kind(one) for one in result["lengths"])
        + _gates(result["gates"])
        + "### What was trained\n\nTokens and MFU count padding; both rates are medians.\n\n"
        + _runs(result)
        + "".join(f"\nLeft out: {line}.\n" for line in result["left_out"])
        + f"\n{provenance(result['machine'])}\n"
    )


def _models(result: Mapping[str, Any]) -> str:
    seeds = result["seeds"]
    return f"Models of {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def _arms(result: Mapping[str, Any]) -> list[str]:
    """In the order of the design, those that have answers."""
    found = {x["arm"] for one in result["lengths"] for x in one["accuracy"]}
    return [arm for arm in result["design"]["arms"] if arm in found]


def _scores(one: Mapping[str, Any], style: str = "free") -> dict[tuple[str, str], dict[str, float]]:
    """Of a length, by arm and kind."""
    return {(x["arm"], x["kind"]): x for x in one["accuracy"] if x["style"] == style}


def _percent(found: Mapping[str, float] | None, *, digits: int = 1) -> str:
    if found is None:
        return "-"
    value, low, high = (f"{100 * found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _lengths(result: Mapping[str, Any]) -> str:
    arms = _arms(result)
    others = [arm for arm in arms if arm not in ("dense", "window")]
    head = ["video tokens", "videos", "attended", "constant", *arms]
    head += [f"{arm}, likeliest" for arm in ("dense", "nsa") if arm in arms]
    head += ["kinds that count", *(f"{arm} recovers" for arm in others), "seen"]
    rows = []
    for one in result["lengths"]:
        share = result["attention"]["shares"][str(one["length"])]
        free, likeliest = _scores(one), _scores(one, "likeliest")
        compared = one["compared"]["free"]
        recovered = compared["recovered"]
        nsa = recovered.get("nsa")
        rows.append(
            [
                f"{one['length']:,}",
                f"{one['videos']}",
                f"{100 * share['selected_and_window']:.1f} ({100 * share['all']:.1f})",
                f"{100 * _mean(one['constant'].values()):.1f}",
                *(_percent(free.get((arm, _MEAN))) for arm in arms),
                *(
                    f"{100 * likeliest[arm, _MEAN]['value']:.1f}"
                    if (arm, _MEAN) in likeliest
                    else "-"
                    for arm in ("dense", "nsa")
                    if arm in arms
                ),
                ", ".join(compared["kinds"]) or "none",
                *(_percent(recovered.get(arm, {}).get("share"), digits=0) for arm in others),
                "-" if nsa is None else f"{100 * nsa['share_that_would_be_seen']:.0f}",
            ]
        )
    return table(head, rows)


def _differences(result: Mapping[str, Any]) -> str:
    """Of every arm from dense attention, over all kinds."""
    found = [
        (one["length"], one["compared"]["free"].get("differences", {})) for one in result["lengths"]
    ]
    arms = [arm for arm in _arms(result) if any(arm in of_arms for _, of_arms in found)]
    if not arms:
        return ""
    rows = [
        [f"{length:,}", *(_difference(of_arms.get(arm)) for arm in arms)]
        for length, of_arms in found
    ]
    return (
        "### Differences from dense attention\n\nPoints, of the means over all kinds, those that "
        "nobody knows included. Behind the interval the smallest difference that would have been "
        "seen.\n\n" + table(["video tokens", *arms], rows) + "\n"
    )


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    value, low, high = (f"{found['points'][name]:+.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high}); {found['points_that_would_be_seen']:.1f}"


def _by_kind(one: Mapping[str, Any]) -> str:
    free = _scores(one)
    arms = list(dict.fromkeys(arm for arm, _ in free))
    shares = one["compared"]["free"]["by_kind"]
    head = ["kind", "constant", *arms, "nsa recovers"]
    rows = [
        [
            kind,
            f"{100 * constant:.1f}",
            *(_percent(free[arm, kind]) for arm in arms),
            _percent(shares.get(kind, {}).get("nsa", {}).get("share"), digits=0),
        ]
        for kind, constant in one["constant"].items()
    ]
    return f"### {one['length']:,} tokens by kind of question\n\n{table(head, rows)}\n"


def _gates(gates: Mapping[str, Any]) -> str:
    """Mean gates of videos of a single kind: of all layers, the lowest and the highest beside."""
    if not gates["kinds"]:
        return ""
    rows = []
    for kind, layers in gates["kinds"].items():
        columns = list(zip(*layers, strict=True))
        rows.append([kind, *(f"{_mean(x):.2f} ({min(x):.2f}-{max(x):.2f})" for x in columns)])
    return (
        "### Gates by kind of question\n\nVideos of one kind each, the `nsa` arm: the mean gate of "
        "each branch over vision tokens and layers, with that of the lowest and highest layer. "
        "Vision tokens never see the question; what differs is what the videos show.\n\n"
        + table(["kind", *gates["branches"]], rows)
        + "\n"
    )


def _runs(result: Mapping[str, Any]) -> str:
    head = ["run", "steps", "learning rate", "million tokens", "videos", "loss: first, last"]
    head += ["tokens a second", "MFU, %"]
    return table(
        head,
        [
            [
                f"`{run['name']}`",
                f"{run['steps']:,}",
                f"{run['learning_rate']:g}",
                f"{run['tokens'] / 1e6:.1f}",
                f"{run['videos']:,}",
                ", ".join(f"{loss:.2f}" for _, loss in (run["losses"][:1] + run["losses"][-1:])),
                f"{run['tokens_per_second']:,.0f}" if "tokens_per_second" in run else "-",
                f"{100 * run['mfu']:.1f}" if "mfu" in run else "-",
            ]
            for run in result["runs"]
        ],
    )


def draw_study(result: Mapping[str, Any]) -> bytes:
    """Mean accuracy over kinds against length as PNG, with its intervals.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib: pip install 'videonsa[eval]', then run the same command again"
        ) from error
    figure = Figure(figsize=(8.6, 4.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title("Arms of the study on the suite", loc="left", fontsize=13, fontweight="bold")
    for arm in _arms(result):
        asked = [one for one in result["lengths"] if (arm, _MEAN) in _scores(one)]
        means = [_scores(one)[arm, _MEAN] for one in asked]
        lengths = [one["length"] for one in asked]
        value, low, high = ([100 * x[name] for x in means] for name in ("value", "low", "high"))
        axes.plot(lengths, value, "o-", color=_COLOURS[arm], markersize=4, label=arm)
        axes.fill_between(lengths, low, high, color=_COLOURS[arm], alpha=0.15, linewidth=0)
    lengths = [one["length"] for one in result["lengths"]]
    constant = [100 * _mean(one["constant"].values()) for one in result["lengths"]]
    axes.plot(lengths, constant, ":", color="#555555", label="best constant answer")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("video tokens; trained on at most 16,384")
    axes.set_ylabel("right answers, percent, mean over kinds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e3e3")
    axes.legend(frameon=False)
    content = io.BytesIO()
    # Without the version of matplotlib, so that equal pictures are equal files.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
