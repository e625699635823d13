"""Kernel and estimators of sparse prefill: `block_sparse.py`, `estimators.py`."""

from collections.abc import Mapping
from typing import Any

from videonsa.evals.markdown import provenance, table


def render_block_sparse(result: Mapping[str, Any]) -> str:
    """Time of the block-sparse kernel at forced densities, beside dense attention and NSA."""
    head = ["attention", "ms: median (range)", "over dense", "share of dense, %", "over its share"]
    rows = [
        [
            run["name"],
            _time(run),
            _number(run.get("ratio"), 1, ".2f"),
            _number(run.get("share"), 100, ".3g"),
            _number(run.get("factor"), 1, ".2f"),
        ]
        for run in result["runs"]
    ]
    return (
        "## Block-sparse attention at forced densities\n\n"
        f"{result['shape']}. Random blocks of 128, and vertical-slash patterns of the published "
        "sizes at random places; the lists are given, estimators are timed below. Over its share: "
        "the time over that of dense attention, divided by the share of its causal tiles (of "
        "vertical-slash, pairs) that is computed.\n\n"
        + table(head, rows)
        + f"\nHow: {result['method']}.\n\n{provenance(result['machine'])}\n"
    )


def render_estimators(result: Mapping[str, Any]) -> str:
    """Time, memory and density of the estimators, apart from the attention."""
    head = ["inputs", "estimator", "ms: median (range)", "GB", "pairs chosen, % of dense"]
    rows = [
        [
            regime,
            run["name"],
            _time(run),
            _number(run["extra_gb"], 1, ".2f"),
            _number(run["density"], 100, ".3g"),
        ]
        for regime, runs in result["regimes"].items()
        for run in runs
    ]
    return (
        "## Estimators of sparse prefill\n\n"
        f"{result['shape']}, published settings. Attention over the lists is not in the times. "
        "Inputs are normal numbers, whose attention is nearly flat: the densities are not those of "
        "videos.\n\n"
        + table(head, rows)
        + f"\nHow: {result['method']}.\n\n{provenance(result['machine'])}\n"
    )


def _time(run: Mapping[str, Any]) -> str:
    if run["ms"] is None:
        return f"{run['status']}: {run['error']}"
    return f"{run['ms']:.2f} ({run['ms_min']:.2f}-{run['ms_max']:.2f})"


def _number(value: float | None, scale: int, form: str) -> str:
    return "" if value is None else f"{scale * value:{form}}"
