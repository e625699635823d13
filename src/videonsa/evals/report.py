"""Writes docs/results.md from committed JSON: `python -m videonsa.evals.report DIR --out FILE`.

DIR holds one folder a machine; a file's name says what it measured (`embedded.json`, ...).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videonsa.evals.statistics import Accuracy

HEADER = """# Results

Written by `make results` from the JSON under `benchmarks/results/`; do not edit by hand.
Intervals are 95 % Wilson intervals.
"""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(score: dict[str, int]) -> str:
    accuracy = Accuracy(score["right"], score["total"])
    low, high = accuracy.interval
    return f"{_percent(accuracy.share)} ({_percent(low)}-{_percent(high)})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def render_embedded(result: dict[str, Any]) -> str:
    """Accuracy of the embedded model by kind of question and by what was taken away."""
    kinds = result["kinds"]
    rows = [
        [condition, *(_cell(scores[kind]) for kind in [*kinds, "all"])]
        for condition, scores in result["conditions"].items()
    ]
    rows.append(["best constant answer", *(_cell(result["constant"][k]) for k in [*kinds, "all"])])
    return (
        "## The embedded model\n\n"
        f"{result['clips_per_kind']} clips of seeds never trained on for each kind of question; "
        f"{result['frames']} frames, {result['video_tokens']} video tokens a clip; "
        f"n = {result['num_selected_blocks']}, s = {result['block_size']}, "
        f"w = {result['window_size']}: a row attends to {result['attention_keys']} keys beside "
        f"the compressed ones, {result['video_tokens'] / result['attention_keys']:.1f} times fewer "
        "than there are. Right answers in percent.\n\n"
        + _table(["condition", *kinds, "all"], rows)
        + f"\n{_provenance(result)}\n"
    )


def render_decode(result: dict[str, Any]) -> str:
    """Reading a video against a bare decoding loop."""
    rows = [
        [name, f"{run['seconds']['median']:.1f} ({run['seconds']['min']:.1f}-"
         f"{run['seconds']['max']:.1f})", f"{run['peak_mb']:.0f}"]
        for name, run in result["runs"].items()
    ]  # fmt: skip
    return (
        f"## Reading a video\n\n{result['what']}\n\n"
        + _table(["", "seconds: median (range)", "peak memory, MB"], rows)
        + f"\nRatio of the paired runs: {result['ratio']['median']:.3f} "
        f"({result['ratio']['min']:.3f}-{result['ratio']['max']:.3f}).\n\n{_provenance(result)}\n"
    )


def _provenance(result: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return f"Measured on {result['machine']}; {facts}; commit {result['commit']}."


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "embedded": render_embedded,
    "decode": render_decode,
}


def render(folder: Path) -> str:
    """All of docs/results.md from the JSON files one folder down."""
    parts = [HEADER]
    for name, section in SECTIONS.items():
        paths = sorted(folder.glob(f"*/{name}.json"))
        parts += [section(json.loads(path.read_text())) for path in paths]
    return "\n".join(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(render(args.folder))


if __name__ == "__main__":
    main()
