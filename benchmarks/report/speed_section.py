"""Training speed of two commits in docs/results.md: from `benchmarks.study.speed`."""

from collections.abc import Mapping
from typing import Any

from videonsa.evals.markdown import provenance, table


def render_speed(result: Mapping[str, Any]) -> str:
    """Tokens a second and MFU of each way to train, in one run on one GPU."""
    rows = [
        [
            name,
            f"{part['tokens_a_step']:,.0f}",
            f"{part['tokens_per_second']:,.0f} ({part['lowest']:,}-{part['highest']:,})",
            _percent(part["mfu"]),
            _percent(part["busy"]),
            _percent(part["padding"] or 0.0),
        ]
        for name, part in result["parts"].items()
    ]
    head = ["", "tokens a step", "tokens a second (range)", "MFU, %", "GPU busy, %", "padding, %"]
    return (
        "## Training of small models: before and after\n\n"
        "Steps of `videonsa train` on videos of the suite of 4K tokens, by an older commit "
        "(before) and by this one (after), in turn on one GPU; "
        f"{result['steps'] - result['warm_up']} steps after {result['warm_up']} of warm-up in each "
        "of "
        f"{max(len(part['runs']) for part in result['parts'].values())} runs. The 3M model has the "
        "shape of the embedded one. Rates are medians over a few steps each and count no padding; "
        "MFU counts it. Busy: the share of time in which the GPU computed anything.\n\n"
        + table(head, rows)
        + f"\n{provenance(result['machine'])}\n"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
