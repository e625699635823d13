"""Bits against bits, and the table of what was found."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

FAILED = "failed: "
"""How a note begins on what ran and ended in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    case: str
    dtype: str
    against: str
    """The old commit."""
    tensors: int = 0
    equal: bool | None = None
    """None where the case did not run."""
    max_difference: float | None = None
    where: str = ""
    """The tensor that differs most."""
    sha256: str = ""
    """Of all tensors of the new code."""
    must_differ: bool = False
    note: str = ""

    @property
    def as_expected(self) -> bool:
        """Equal, or not where it must differ; a case that failed never is."""
        if self.equal is None:
            return not self.note.startswith(FAILED)
        return self.equal != self.must_differ

    def as_json(self) -> dict[str, object]:
        """As JSON knows it, which has no NaN and no infinity."""
        difference, found = self.max_difference, asdict(self)
        if difference is not None and not math.isfinite(difference):
            found["max_difference"] = str(difference)
        return found


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        found.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        found.update(_bytes(x))
    return found.hexdigest()


def difference(old: Tensor, new: Tensor) -> float | None:
    """None for the same bits, else the largest absolute difference; inf for shapes and dtypes."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if _bytes(old) == _bytes(new):
        return None
    return float((old.double() - new.double()).abs().max())


def compare(old: dict[str, Tensor], new: dict[str, Tensor]) -> tuple[float | None, str]:
    """The largest difference of all tensors, as `difference` gives it, and where it is."""
    if old.keys() != new.keys():
        return float("inf"), f"only one has {', '.join(sorted(old.keys() ^ new.keys())[:3])}"
    found = {name: difference(old[name], new[name]) for name in old}
    differing = {name: value for name, value in found.items() if value is not None}
    if not differing:
        return None, ""
    # A NaN beside a number is the largest of all.
    worst = max(differing, key=lambda name: (differing[name] != differing[name], differing[name]))
    return differing[worst], worst


def _told(row: Row) -> str:
    if row.equal is None:
        return row.note if row.note.startswith(FAILED) else f"not run: {row.note}"
    if row.equal:
        return "EQUAL, must differ" if row.must_differ else "equal"
    wanted = " (must)" if row.must_differ else ""
    return f"{'differs' if wanted else 'DIFFERS'}{wanted}: {row.max_difference:.3g} in {row.where}"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| case | dtype | against | tensors | result | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        note = "" if row.equal is None else row.note
        cells = (row.case, row.dtype, row.against, str(row.tensors), _told(row), note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
