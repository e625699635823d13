"""Whole models, stage by stage, in docs/results.md: what `videonsa bench prefill` wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

from videonsa.evals.markdown import provenance, table

FILES = ("prefill", "prefill_168x280", "prefill_peers", "prefill_long")
"""Names of the files of results, without suffix."""

_HEAD = ("stage", "ms: median (range)", "of it attention", "peak GB", "predicted GB")


def render_prefill(result: Mapping[str, Any]) -> str:
    """All lengths of one run, and the video that was read, if one was."""
    height, width = result["frame"]
    parts = [
        f"## Time to the first token: {result['model']} on {result['machine']['device']}, "
        f"frames of {width}x{height}\n\n"
        f"Random weights of the published shape, {result['dtype'].removeprefix('torch.')}, "
        f"{result['weights_gb']:.1f} GB.\n"
    ]
    if (video := result["video"]) is not None:
        parts.append(
            f"### A file: {video['source']}, {video['duration']:.0f} s\n\n"
            f"{video['frames']} frames, {video['tokens']:,} video tokens; {video['workers']} "
            f"workers on {video['cores']} cores read {video['workers_speedup']['median']:.2f} "
            "times as fast as one.\n\n" + _stages(video["stages"])
        )
    parts += [
        f"### {length['tokens']:,} video tokens\n\n" + _stages(length["stages"])
        for length in result["lengths"]
    ]
    parts.append(f"How: {result['method']}.\n\n{provenance(result['machine'])}\n")
    return "\n".join(parts)


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    return table(_HEAD, [[stage["name"], *_numbers(stage)] for stage in stages])


def _numbers(stage: Mapping[str, Any]) -> list[str]:
    if stage["error"] is not None:
        return [stage["error"], "", "", ""]
    low, high = min(stage["times_ms"]), max(stage["times_ms"])
    attention = stage.get("attention_ms")
    return [
        f"{stage['ms']:.1f} ({low:.1f}-{high:.1f})",
        "" if attention is None else f"{attention:.1f} ({100 * attention / stage['ms']:.0f} %)",
        _gigabytes(stage["peak_gb"]),
        _gigabytes(stage.get("predicted_gb")),
    ]


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
