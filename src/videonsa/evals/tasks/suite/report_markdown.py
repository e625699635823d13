"""The report in Markdown, from the numbers of `summarise`."""

from collections.abc import Mapping, Sequence
from typing import Any

from videonsa.evals.markdown import provenance, table
from videonsa.evals.scoring import Accuracy
from videonsa.evals.tasks.suite.suite_run import BLIND, WHOLE
from videonsa.evals.tasks.suite.suite_summary import ALL, POSITION_BINS

_WORDS = {
    WHOLE: "all branches",
    "no-compressed": "compressed branch ablated",
    "no-selected": "selected branch ablated",
    "no-window": "window branch ablated",
    "none": "all branches ablated",
    "grey": "frames replaced by grey",
    BLIND: "no video, the question alone",
}
_STYLES = {
    "free": "the model writes the answer (style 'free')",
    "choice": "the model names a letter or an option (style 'choice')",
    "likeliest": "the option with the highest probability is the answer (style 'likeliest')",
}
_NOTHING = "-"
_LIKELIEST = "likeliest"
"""Of a score: the questions whose likeliest option is right."""


def render_suite(
    result: Mapping[str, Any], *, title: str, figures: Sequence[str], note: str = ""
) -> str:
    """The report as Markdown.

    Args:
        result: of `summarise`, with `run` (what `run.json` says) beside.
        title: of the report or section, with its number signs.
        figures: file names of the plots beside the report.
        note: a paragraph of the reader's own, below the introduction.
    """
    level = title.split()[0] + "#"
    kinds, lengths = [*result["kinds"], ALL], [*map(str, result["lengths"]), ALL]
    parts = [
        f"{title}\n",
        _introduction(result),
        *([f"{note}\n"] if note else []),
        *(f"![{_alternative(name)}]({name})\n" for name in figures),
        f"{level} Accuracy against length\n",
        _by_length(result, lengths),
        f"{level} Kinds of question\n",
        _by_kind(result, kinds, lengths),
        _against_chance(result),
        f"{level} Position of the evidence\n",
        _by_position(result),
        f"{level} Attention computed, time and memory\n",
        _by_cost(result),
        provenance(result["run"]["machine"]) + f" {result['run']['seconds']:.0f} s in all.\n",
    ]
    return "\n".join(parts)


def _alternative(name: str) -> str:
    """What is said in place of a plot: its name in words."""
    return name.split(".")[0].replace("-", " ").replace("_", " ")


def length_text(tokens: int | str) -> str:
    """16384 -> 16K; a still's few tokens as they are."""
    if tokens == ALL:
        return ALL
    if int(tokens) < 128:
        return str(tokens)
    kilo = int(tokens) / 1024
    return f"{kilo / 1024:g}M" if kilo >= 1024 else f"{kilo:g}K"


def percent(right: int, total: int) -> str:
    """Right answers in percent with their interval."""
    accuracy = Accuracy(right, total)
    low, high = accuracy.interval
    return f"{100 * accuracy.share:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _introduction(result: Mapping[str, Any]) -> str:
    videos = ", ".join(
        f"{number} of {length_text(length)}" for length, number in result["videos"].items()
    )
    style = _STYLES.get(result["style"], f"style '{result['style']}'")
    asked = "One question of each kind a video"
    total = _scores(result)[result["main"], ALL, ALL]
    if result.get("suite", 1) == 2:
        asked = f"Suite 2, {total['total']} questions"
    if _LIKELIEST in total:
        style += "; the option with the highest probability is scored beside it"
    return (
        f"Model {result['model']}, {_attention(result)}. "
        f"Rendered videos of the {result['split']} split, "
        f"difficulty {result['difficulty']}, frames of {result['frame_size']} pixels a side at "
        f"2 a second; videos by tokens: {videos}. {asked}; "
        f"{style}. Right answers in percent, with 95 % Wilson intervals.\n"
    )


def _attention(result: Mapping[str, Any]) -> str:
    """NSA by its sizes, another method by its name and parameters."""
    spec = result["spec"] or {}
    sizes = {"n": "num_selected_blocks", "s": "block_size", "w": "window_size"}
    if spec.keys() >= set(sizes.values()):
        return ", ".join(f"{letter} = {spec[name]}" for letter, name in sizes.items())
    parameters = ", ".join(f"{name} = {value}" for name, value in spec.items())
    return f"{result['attention']} attention" + (f" ({parameters})" if parameters else "")


def _by_length(result: Mapping[str, Any], lengths: Sequence[str]) -> str:
    scores = _scores(result)
    guessing = {(x["length"], x["kind"]): x for x in result["guessing"]}
    rows = []
    for name in result["conditions"]:
        cells = [_cell(scores.get((name, length, ALL))) for length in lengths]
        total = scores[name, ALL, ALL]
        rows.append([_WORDS[name], *cells, f"{100 * total['unparsed'] / total['total']:.1f}"])
        if _LIKELIEST in total:
            found = (scores.get((name, length, ALL)) for length in lengths)
            rows.append(
                [f"{_WORDS[name]}, likeliest option", *(_cell(x, _LIKELIEST) for x in found), ""]
            )
    whole = [guessing.get((length, ALL)) for length in lengths]
    rows.append(["best constant answer", *(_cell(x, "constant") for x in whole), ""])
    rows.append(["an option at random", *(_chance(x) for x in whole), ""])
    rows.append(["oracle, from the script", *(_cell(x, "oracle") for x in whole), ""])
    return (
        table(["", *map(length_text, lengths), "name no option"], rows)
        + "\nall: every question counts once, whatever its length. The best constant answer to "
        "each kind is chosen after the fact. Name no option: replies, in percent, that are none "
        "of the options of their question; they count as wrong.\n"
    )


def _scores(result: Mapping[str, Any]) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {(x["condition"], x["length"], x["kind"]): x for x in result["scores"]}


def _cell(entry: Mapping[str, Any] | None, name: str = "right") -> str:
    return _NOTHING if entry is None else percent(entry[name], entry["total"])


def _chance(entry: Mapping[str, Any] | None) -> str:
    return _NOTHING if entry is None else f"{100 * entry['chance']:.1f}"


def _by_kind(result: Mapping[str, Any], kinds: Sequence[str], lengths: Sequence[str]) -> str:
    scores = _scores(result)
    guessing = {x["kind"]: x for x in result["guessing"] if x["length"] == ALL}
    main, others = result["main"], [x for x in result["conditions"] if x != result["main"]]
    by_length = [
        [
            kind,
            *(_cell(scores.get((main, length, kind))) for length in lengths),
            _cell(guessing[kind], "constant"),
            _chance(guessing[kind]),
            _cell(guessing[kind], "oracle"),
        ]
        for kind in kinds
    ]
    parts = [
        f"Condition `{main}`; constant, random and oracle are over all lengths.\n",
        table(["", *map(length_text, lengths), "constant", "random", "oracle"], by_length),
    ]
    if _LIKELIEST in scores[main, ALL, ALL]:
        rows = [
            [kind, *(_cell(scores.get((main, length, kind)), _LIKELIEST) for length in lengths)]
            for kind in kinds
        ]
        parts += ["The likeliest option:\n", table(["", *map(length_text, lengths)], rows)]
    if others:
        rows = [
            [kind, *(_cell(scores.get((name, ALL, kind))) for name in others)] for kind in kinds
        ]
        parts += ["The other conditions, over all lengths:\n", table(["", *others], rows)]
    return "\n".join(parts)


def _against_chance(result: Mapping[str, Any]) -> str:
    """Which kinds are beyond guessing at an option."""
    chance = {x["kind"]: x["chance"] for x in result["guessing"] if x["length"] == ALL}
    above, below = [], []
    for entry in result["scores"]:
        if (entry["condition"], entry["length"]) != (result["main"], ALL) or entry["kind"] == ALL:
            continue
        low, high = Accuracy(entry["right"], entry["total"]).interval
        if low > chance[entry["kind"]]:
            above.append(entry["kind"])
        elif high < chance[entry["kind"]]:
            below.append(entry["kind"])
    order = result["kinds"].index
    return (
        f"Over all lengths, `{result['main']}` differs from an option at random (which lies "
        f"outside the interval): above in {', '.join(sorted(above, key=order)) or 'no kind'}; "
        f"below in {', '.join(sorted(below, key=order)) or 'no kind'}.\n"
    )


def _by_position(result: Mapping[str, Any]) -> str:
    main = result["main"]
    found = {(x["length"], x["bin"]): x for x in result["positions"] if x["condition"] == main}
    rows = [
        [length_text(length), *(_cell(found.get((length, part))) for part in range(POSITION_BINS))]
        for length in result["lengths"]
    ]
    width = 100 // POSITION_BINS
    head = [f"{width * part}-{width * (part + 1)} %" for part in range(POSITION_BINS)]
    return (
        f"Condition `{main}`, by where in the video the middle of the evidence lies. Questions "
        "whose evidence spans more than half of the video are left out.\n\n"
        + table(["", *head], rows)
    )


def _by_cost(result: Mapping[str, Any]) -> str:
    scores = _scores(result)
    rows = []
    for entry in result["costs"]:
        score = scores[entry["condition"], str(entry["length"]), ALL]
        fraction, peak = entry["attention_fraction"], entry["peak_bytes"]
        rows.append(
            [
                length_text(entry["length"]),
                entry["condition"],
                _number(entry["attended_keys"], 0),
                _NOTHING if fraction is None else f"{100 * fraction:.2f}",
                percent(score["right"], score["total"]),
                *(
                    _number(entry[f"{stage}_seconds"], 2)
                    for stage in ("encode", "prefill", "answer")
                ),
                _NOTHING if peak is None else f"{peak / 1e9:.2f}",
            ]
        )
    head = ["tokens", "condition", "K", "attention, %", "right, %"]
    head += ["encode, s", "prefill, s", "answer, s", "peak, GB"]
    return (
        "K: keys that a vision token attends to in the selected blocks and the window, as far as "
        "these are not ablated; compressed keys are not counted. Attention: 2K / (L - 1), the "
        "share of dense causal attention. Times are medians: encode (drawing the frames and the "
        "tower) for each video, prefill for each condition, answer for each question.\n\n"
        + table(head, rows)
    )


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"
