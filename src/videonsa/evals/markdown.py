"""Pieces of Markdown that all sections of docs/results.md share."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def provenance(machine: Mapping[str, Any]) -> str:
    """What the numbers hold for, in one sentence."""
    return "Measured with: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."
