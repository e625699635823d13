"""The attention benchmark in docs/results.md, and its plot."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.report.svg import Line, log_log_chart
from videonsa.evals.markdown import provenance, table

FILES = ("attention", "attention_backward", "attention_both")
"""Names of the files of results, without suffix; one file for each pass."""
_FAMILY = "7b"
"""The plot shows shapes whose names begin with this."""


class _Curve(NamedTuple):
    op: str
    regime: str
    label: str
    colour: str
    dashed: bool


_CURVES = (
    _Curve("sdpa-cudnn", "any", "dense, cuDNN", "#000000", False),
    _Curve("sdpa-flash", "any", "dense, flash", "#7f7f7f", False),
    _Curve("fla-nsa", "random", "NSA of fla*, random", "#d55e00", False),
    _Curve("videonsa", "random", "videonsa, random", "#0072b2", True),
    _Curve("videonsa", "coherent", "videonsa, coherent", "#0072b2", False),
)

_INTRO = """\
{name} of one attention layer, batch 1, from pooling to the gated sum; the selection is always
computed, never given.

- Ops: `videonsa` is NSA as the paper has it; in `videonsa-block` all queries of a block share one
  selection; `sdpa-cudnn` and `sdpa-flash` are dense causal attention in PyTorch; `fla-nsa` is the
  NSA of flash-linear-attention. "Dense" in a ratio is `sdpa-cudnn` in the same process.
- Inputs: in `random` ones q, k and v are independent and normal. In `coherent` ones all tokens of a
  frame have one normal q a head, plus 0.1 normal noise a token, so that neighbouring tokens select
  mostly the same blocks, as in a video. Dense attention depends on neither (`any`).
- Union: the mean number of distinct blocks that 16 neighbouring queries select together.
- Extra GB: peak memory, less inputs and output{less}.
"""


class _Pass(NamedTuple):
    name: str
    less: str
    """What else extra memory leaves out."""
    more: str
    """What has to be said after the introduction."""


_PASSES = {
    "forward": _Pass("Forward pass", "", ""),
    "backward": _Pass(
        "Backward pass",
        " and gradients; the peak is that of both passes",
        "- Timed is the backward pass alone: gradients of q, k, v and gates.\n",
    ),
    "both": _Pass(
        "Forward and backward pass",
        " and gradients",
        "- Gradients are those of q, k, v and gates.\n",
    ),
}


def render_attention(result: dict[str, Any], *, figure: str | None) -> str:
    """A table for each shape.

    Args:
        result: of `videonsa bench attention`.
        figure: file name of the plot beside the report, if there is one.
    """
    which = _PASSES[result["pass"]]
    head = f"## Attention on {result['machine']['device']}"
    if result["pass"] != "forward":
        head += f": {which.name.lower()}"
    parts = [f"{head}\n\n{_INTRO.format(name=which.name, less=which.less)}{which.more}"]
    if figure is not None:
        parts.append(f"![Time against length]({figure})\n")
    parts += [_shape_section(entry) for entry in result["shapes"]]
    parts.append(f"How: {result['method']}.\n")
    parts.append(_verified(result["shapes"]))
    known = {name: value for name, value in result["machine"].items() if value is not None}
    parts.append(provenance(known) + "\n")
    return "\n".join(parts)


def attention_figure(result: dict[str, Any]) -> str | None:
    """Time against length as SVG, log-log; None with fewer than two lengths."""
    entries = [x for x in result["shapes"] if x["shape"]["name"].split("-")[0] == _FAMILY]
    entries.sort(key=lambda entry: entry["shape"]["tokens"])
    lines = [line for curve in _CURVES if (line := _line(curve, entries)) is not None]
    lengths = sorted({x for line in lines for x, _ in line.points})
    if len(lengths) < 2:
        return None
    shape = entries[0]["shape"]
    return log_log_chart(
        lines,
        title=f"Attention, {_PASSES[result['pass']].name.lower()} of one layer",
        subtitle=f"{result['machine']['device']}; {shape['query_heads']} query and "
        f"{shape['kv_heads']} KV heads of {shape['head_dim']}, s = {shape['block_size']}, "
        f"n = {shape['num_selected']}, w = {shape['window']}, {shape['dtype']}; medians. "
        "* without a window branch",
        x_label="length in tokens",
        y_label="time in milliseconds",
        x_ticks=[(length, _length_text(length)) for length in lengths],
    )


def _line(curve: _Curve, entries: Sequence[dict[str, Any]]) -> Line | None:
    points = [
        (float(entry["shape"]["tokens"]), float(run["ms"]))
        for entry in entries
        for run in entry["runs"]
        if (run["op"], run["regime"]) == (curve.op, curve.regime) and run["ms"] is not None
    ]
    if not points:
        return None
    return Line(label=curve.label, colour=curve.colour, points=points, dashed=curve.dashed)


def _length_text(tokens: float) -> str:
    kilo = tokens / 1024
    return f"{kilo / 1024:g}M" if kilo >= 1024 else f"{kilo:g}K"


def _shape_section(entry: dict[str, Any]) -> str:
    shape = entry["shape"]
    block = shape["block_size"]
    size = f"frames of {shape['frame_size']}" if block == "frame" else f"s = {block}"
    head = (
        f"### {shape['name']}: {shape['tokens']:,} tokens, {shape['query_heads']} query and "
        f"{shape['kv_heads']} KV heads of {shape['head_dim']}, {size}, n = "
        f"{shape['num_selected']}, w = {shape['window']}\n"
    )
    columns = [
        "op",
        "inputs",
        "ms: median (range)",
        "time / dense",
        "dense / time",
        "extra GB",
        "union",
    ]
    rows = [_row(run) for run in entry["runs"]]
    notes = [f"- `{op}`: {'; '.join(notes)}." for op, notes in _notes(entry["runs"]).items()]
    return "\n".join([head, table(columns, rows), *notes]) + ("\n" if notes else "")


def _row(run: dict[str, Any]) -> list[str]:
    names = [f"`{run['op']}`", run["regime"]]
    if run["ms"] is None:
        return [*names, run["status"], "", "", "", ""]
    time = f"{_digits(run['ms'])} ({_digits(run['ms_min'])}-{_digits(run['ms_max'])})"
    ratio, extra, union = run["ratio"], run["extra_gb"], run["mean_union"]
    return [
        *names,
        time,
        "" if ratio is None else f"{ratio:.3f}",
        "" if ratio is None else f"{1 / ratio:.2f}",
        "" if extra is None else f"{extra:.2f}",
        "" if union is None else f"{union:.1f}",
    ]


def _digits(value: float) -> str:
    """Four significant digits, or all digits before the point."""
    return f"{value:.{max(0, 3 - math.floor(math.log10(value)))}f}"


def _notes(runs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """For each op its notes and the reasons why a number is missing, each once."""
    notes: dict[str, list[str]] = {}
    for run in runs:
        said = [*run["notes"], *([run["error"]] if run["error"] is not None else [])]
        kept = notes.setdefault(run["op"], [])
        kept += [note.replace("|", "\\|") for note in said if note not in kept]
    return {op: said for op, said in notes.items() if said}


def _verified(entries: Sequence[dict[str, Any]]) -> str:
    """What was checked before the measurement, at its worst."""
    checked = [x["verification"] for x in entries if x["verification"]["checks"]]
    if not checked:
        return "No op of this package was measured, so nothing was verified.\n"
    worst = max(checked, key=lambda verified: verified["worst_error"])
    of_gradients = [
        x for verified in checked if (x := verified.get("worst_gradient_error")) is not None
    ]
    gradients = f" (of gradients {max(of_gradients):.2f})" if of_gradients else ""
    tests = sorted({verified["tests"] or "no kernel tests run" for verified in checked})
    return (
        f"Checked {worst['checks']} times against the float64 reference before timing: errors at "
        f"most {worst['worst_error']:.2f}{gradients} of what is allowed; {worst['differing']} of "
        f"{worst['selections']} selections differ from the reference's, "
        f"{worst['beyond_near_ties']} of them beyond near ties (a gap of 1e-5), the widest "
        f"{worst['widest_gap']:.1g}. {'; '.join(tests)}.\n"
    )
