"""Time to the first token, stage by stage, in docs/results.md: from `videonsa bench prefill`."""

from collections.abc import Mapping, Sequence
from typing import Any

from videonsa.evals.markdown import provenance, table

FILES = {
    "prefill": "",
    "prefill_nsa": ", beside fp8: weights in bfloat16",
    "prefill_fp8": ", weights in fp8",
    "prefill_peers": ", beside transformers",
    "prefill_reading": ", from a video file",
    "prefill_long": ", 512K and 1M tokens",
    "prefill_baselines": ", every method as published",
}
"""Names of the files of results, without suffix, and what distinguishes them."""
_COLUMNS = (
    "Inputs are `random` (tokens independent and normal) or `coherent` (one normal vector a frame, "
    "plus 0.1 normal noise a token, so that neighbouring tokens select mostly the same blocks). "
    "Attention, gates and rest are the parts of a prefill, in ms and percent. Blocks of 16 "
    "queries: the mean number of distinct blocks that 16 neighbouring queries select, of all "
    "layers (of the lowest and the highest layer). Predicted GB is what `videonsa plan` says.\n"
)

_HEAD = (
    *("stage", "ms: median (range)", "attention", "gates", "rest", "blocks of 16 queries"),
    *("peak GB", "predicted GB"),
)


def render_prefill(result: Mapping[str, Any], *, what: str = "") -> str:
    """All lengths of one run, and the video file, if one was read; `what` ends the heading."""
    parts = [
        f"## Time to the first token: {result['model']} on {result['machine']['device']}{what}\n\n"
        f"Random weights of the published shape, {_dtype(result)}, {result['weights_gb']:.1f} GB. "
        f"{_COLUMNS}"
    ]
    if remark := result.get("remark"):  # written by hand: what else the machine did
        parts.append(f"{remark}\n")
    for length in result["lengths"]:
        height, width = length["frame"]
        title = f"### {length['tokens']:,} video tokens, frames of {height}x{width}\n\n"
        parts.append(title + _stages(length["stages"]))
        parts += _speedups(length["stages"])
    if (video := result["video"]) is not None:
        parts.append(
            f"### A file: {video['source']}, {video['duration']:.0f} s\n\n"
            f"{video['frames']} frames, {video['tokens']:,} video tokens; {video['workers']} "
            f"workers on {video['cores']} cores read {video['workers_speedup']['median']:.2f} "
            "times as fast as one.\n\n" + _stages(video["stages"])
        )
    parts.append(f"How: {result['method']}.\n\n{provenance(result['machine'])}\n")
    return "\n".join(parts)


def _dtype(result: Mapping[str, Any]) -> str:
    """Of the weights; results from before there was a choice do not say how they are quantised."""
    dtype = str(result["dtype"]).removeprefix("torch.")
    weights = result.get("weights", "full")
    return dtype if weights == "full" else f"{weights} and {dtype}"


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    return table(_HEAD, [[stage["name"], *_numbers(stage)] for stage in stages])


def _speedups(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each prefill over the dense one; nothing where it was not measured what is computed."""
    found = [stage for stage in stages if stage.get("attention_share") is not None]
    dense = next((stage for stage in found if stage["name"] == "prefill, dense"), None)
    if dense is None or len(found) < 2:
        return []
    rows = [
        [
            stage["name"].removeprefix("prefill, "),
            f"{100 * stage['attention_share']:.3g}",
            f"{dense['ms'] / stage['ms']:.2f}",
            _ratio(dense, stage, "attention_ms"),
        ]
        for stage in found
    ]
    head = ["prefill", "pairs computed, % of dense", "speed-up", "speed-up of attention"]
    return [
        "Speed-up over dense attention in the same run, estimators and the choice of keys "
        "included; of methods that keep some tokens without the vision tower.\n\n"
        + table(head, rows)
    ]


def _ratio(dense: Mapping[str, Any], stage: Mapping[str, Any], name: str) -> str:
    if not dense.get(name) or not stage.get(name):
        return ""
    return f"{dense[name] / stage[name]:.2f}"


def _numbers(stage: Mapping[str, Any]) -> list[str]:
    if stage["error"] is not None:
        return [stage["error"], *[""] * 6]
    low, high = min(stage["times_ms"]), max(stage["times_ms"])
    unions = stage.get("mean_unions")
    return [
        f"{stage['ms']:.1f} ({low:.1f}-{high:.1f})",
        *_parts(stage),
        f"{sum(unions) / len(unions):.0f} ({min(unions):.0f}-{max(unions):.0f})" if unions else "",
        _gigabytes(stage["peak_gb"]),
        _gigabytes(stage.get("predicted_gb")),
    ]


def _parts(stage: Mapping[str, Any]) -> list[str]:
    """Attention, gates and the rest, in the last run, with their shares."""
    if stage.get("attention_ms") is None:
        return [""] * 3
    whole, attention, gates = stage["times_ms"][-1], stage["attention_ms"], stage["gates_ms"]
    parts = (attention, gates, whole - attention - gates)
    return [f"{part:.1f} ({100 * part / whole:.0f} %)" if part else "" for part in parts]


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
