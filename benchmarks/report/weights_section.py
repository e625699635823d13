"""Errors of quantised weights in docs/results.md: from `benchmarks/weights_error.py`."""

from collections.abc import Mapping
from typing import Any

from videonsa.evals.markdown import provenance, table

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
