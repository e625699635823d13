"""Errors of quantised weights in docs/results.md: from `benchmarks/weights_error.py`."""

from collections.abc import Mapping
from typing import Any

from videonsa.evals.markdown import provenance, table

_WAYS = ("bf16", "scaled", "exact", "own", "torchao")
"""Of multiplying many rows."""
_WAYS_OF_FEW = ("bf16", "bf16, few rows", "scaled", "own")
_HEAD = (
    *("model", "weights", "error of the text: median (largest)", "error of the answers"),
    *("tokens that agree", "answers that agree", "right answers"),
)


def render_weights(result: Mapping[str, Any]) -> str:
    """Relative errors of logits against float32, and the greedy tokens that agree."""
    rows = [
        [name, kind, *_numbers(row)]
        for name, kinds in result["models"].items()
        for kind, row in kinds.items()
    ]
    return (
        f"## Errors of bf16, int8 and fp8 on {result['machine']['device']}\n\n"
        f"{result['videos']} videos of the suite of {result['tokens']:,} tokens, nine questions "
        "about each, free answers. Errors are in percent of the norm of float32's logits.\n\n"
        + table(_HEAD, rows)
        + f"\nHow: {result['method']}.\n\n{provenance(result['machine'])}\n"
    )


def render_products(result: Mapping[str, Any]) -> str:
    """Times of the products of the 7B model in bf16 and fp8."""
    rows, sums = max(result["sums"].items(), key=lambda entry: int(entry[0]))
    few = [
        [number, group, *(f"{times[way]:.1f}" for way in _WAYS_OF_FEW)]
        for number, groups in result["few_rows"].items()
        for group, times in groups.items()
    ]
    return (
        f"## Products in bf16 and fp8 on {result['machine']['device']}\n\n"
        "All products of the 7B model's decoder layers, and of its tower's blocks, for 128K "
        f"tokens, {int(rows):,} rows at a time, in seconds. `scaled` is `torch._scaled_mm` alone; "
        "`exact` the same with sums in float32 throughout; `own` is what the model does, "
        "quantising included; `torchao` its dynamic quantisation of rows.\n\n"
        + table(
            ["", *_WAYS],
            [[part, *(f"{sums[part][way]:.2f}" for way in _WAYS)] for part in sums],
        )
        + "\nFew rows, products of one decoder layer in a CUDA graph, in microseconds; `scaled` "
        "quantises its rows, `own` reads weights in float8 only:\n\n"
        + table(["rows", "product", *_WAYS_OF_FEW], few)
        + f"\n{provenance(result['machine'])}\n"
    )


def _numbers(row: Mapping[str, Any]) -> list[str]:
    errors = (
        f"{100 * row[f'{what}_error_median']:.2f} ({100 * row[f'{what}_error_largest']:.2f})"
        for what in ("text", "answer")
    )
    return [
        *errors,
        f"{row['agreeing_tokens']} of {row['answer_tokens']}",
        f"{row['same_answers']} of {row['questions']}",
        str(row["right"]),
    ]
