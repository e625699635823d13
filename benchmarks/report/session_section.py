"""The section of docs/results.md on the memory of a session of many questions."""

from collections.abc import Mapping
from typing import Any

from videonsa.evals.markdown import provenance, table

_HEAD = ("after", "resident, MB", "tensors", "their MB", "Python objects")


def render_session_memory(result: Mapping[str, Any]) -> str:
    """What is in use after parts of a long session, and after conversations that are forgotten."""
    rows = [_row(f"{count['questions']:,} questions", count) for count in result["counts"]]
    for number, one in enumerate(result["conversations"], 1):
        name = f"conversation {number}: {one['questions']} more questions, {one['tokens']:,} tokens"
        rows.append(_row(name, one["after"]))
    rows.append(_row("both forgotten", result["at_the_end"]))
    return (
        "## Memory of a session of many questions\n\n"
        f"The embedded model, {result['tokens']} tokens before a question; counted from question "
        f"{result['warm_up']} on. Questions are about the clip alone: answered whole, streamed, "
        "streamed and stopped, and several side by side. In a conversation each question follows "
        "the one before; the memory that its tokens took is kept for those to come.\n\n"
        + table(_HEAD, rows)
        + f"\n{provenance(result['machine'])}\n"
    )


def _row(name: str, count: Mapping[str, int]) -> list[str]:
    return [
        name,
        f"{count['resident_bytes'] / 1e6:.2f}",
        f"{count['tensors']}",
        f"{count['tensor_bytes'] / 1e6:.2f}",
        f"{count['objects']:,}",
    ]
