"""The paper against us, cell by cell: its values and contradictions, ours, and what differs."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from videonsa.evals.field.paper import PaperRow, PaperTask, the_paper
from videonsa.evals.markdown import table

NOT_COMPARABLE = "NOT COMPARABLE"
_PAPER_SCORING = "paper"


@dataclass(frozen=True, kw_only=True, slots=True)
class OurScore:
    """What a scoring gives a run on a benchmark, percent, with its 95 % interval where known."""

    scoring: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OurResult:
    """A run on a benchmark."""

    run: str
    task: str
    model: str
    demonstration: bool
    """Whether it is the embedded demonstration model."""
    method: str
    """Its name."""
    parameters: Mapping[str, Any]
    """Of the method, by their names; those not stated are its defaults."""
    recipe: str
    settings: PaperTask
    """Of the recipe, as far as the paper states them too."""
    changed: tuple[str, ...] = ()
    """What differs from the recipe, a few words each."""
    samples: int
    failed: int = 0
    """Of the samples; they have no answer."""
    scores: tuple[OurScore, ...]
    prompt_tokens: tuple[int, ...] = ()
    """Of each sample that was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperCell:
    """A value of the paper."""

    table: str
    row: str
    value: float
    contradictions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A benchmark in a run beside the paper's values for it."""

    ours: OurResult
    paper: tuple[PaperCell, ...]
    """None where the paper does not report the method on the benchmark."""
    not_comparable: str | None
    """Why no difference to the paper means anything."""
    differences: tuple[str, ...]
    """Settings that differ from the paper's, a few words each."""
    claimed_tokens: int | None
    median_tokens: int | None
    most_tokens: int | None

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return the_paper().tasks.get(self.ours.task, PaperTask(name=self.ours.task)).name


def compare(ours: OurResult) -> Cell:
    """A result beside what the paper reports for the same method on the same benchmark."""
    paper = the_paper()
    weights = None if ours.demonstration else paper.weights_named(ours.model)
    branches = tuple(ours.parameters.get("branches") or ())
    rows = paper.rows_of(
        ours.task,
        method=ours.method,
        weights=weights,
        branches=() if len(branches) == len(_BRANCHES) else branches,
    )
    stated = paper.tasks.get(ours.task)
    return Cell(
        ours=ours,
        paper=tuple(
            PaperCell(
                table=row.table,
                row=row.row,
                value=row.values[ours.task],
                contradictions=tuple(paper.contradictions_of(ours.task, row)),
            )
            for row in rows
        ),
        not_comparable=_not_comparable(ours, weights),
        differences=(
            *_weights_differ(weights, rows),
            *_method_differs(ours),
            *_settings_differ(ours.settings, stated),
            *ours.changed,
        ),
        claimed_tokens=None if stated is None else stated.claimed_tokens,
        median_tokens=round(median(ours.prompt_tokens)) if ours.prompt_tokens else None,
        most_tokens=max(ours.prompt_tokens, default=None),
    )


_BRANCHES = ("compressed", "selected", "window")


def _not_comparable(ours: OurResult, weights: str | None) -> str | None:
    if ours.demonstration:
        return (
            "the model is the embedded demonstration model, which knows rendered clips of coloured "
            "shapes only"
        )
    if weights is None:
        return f"the weights of {ours.model} are not the paper's"
    return None


def _weights_differ(weights: str | None, rows: Sequence[PaperRow]) -> list[str]:
    theirs = rows[0].weights if rows else None
    if weights is None or theirs in (None, weights):
        return []
    return [f"weights {weights} (paper: {theirs})"]


def _method_differs(ours: OurResult) -> list[str]:
    if ours.method != "nsa":
        return []
    stated = the_paper().attention
    found = [(name, ours.parameters.get(name, value), value) for name, value in stated.items()]
    return [f"{name} {our} (paper: {their})" for name, our, their in found if our != their]


def _settings_differ(ours: PaperTask, theirs: PaperTask | None) -> list[str]:
    """Of the settings that the paper states."""
    if theirs is None:
        return []
    names = {
        "tokens_a_frame": "tokens a frame",
        "frames": "frames",
        "fps": "frames a second",
        "max_new_tokens": "new tokens",
    }
    pairs = [(text, getattr(ours, name), getattr(theirs, name)) for name, text in names.items()]
    return [
        f"{text} {'not stated' if our is None else our} (paper: {their})"
        for text, our, their in pairs
        if their is not None and our != their
    ]


def csv_table(cells: Sequence[Cell]) -> str:
    """A line for each of our results and each value of the paper for it."""
    scorings = _scorings(cells)
    head = ["run", "model", "method", "recipe", "task", "not_comparable"]
    head += ["paper_table", "paper_row", "paper_value", "paper_contradictions"]
    for name in scorings:
        head += [f"{name}_{part}" for part in ("score", "low", "high")]
    head += ["samples", "failed", "differences"]
    head += ["claimed_tokens", "median_prompt_tokens", "most_prompt_tokens"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for cell in cells:
        for value in cell.paper or (None,):
            writer.writerow(_csv_row(cell, value, scorings))
    return text.getvalue()


def _csv_row(cell: Cell, value: PaperCell | None, scorings: Sequence[str]) -> list[Any]:
    ours = cell.ours
    scores = {one.scoring: one for one in ours.scores}
    row: list[Any] = [ours.run, ours.model, ours.method, ours.recipe, ours.task]
    row.append(cell.not_comparable)
    row += (
        [None] * 4
        if value is None
        else [value.table, value.row, value.value, " ".join(value.contradictions)]
    )
    for name in scorings:
        one = scores.get(name)
        row += [None] * 3 if one is None else [_places(x) for x in (one.value, one.low, one.high)]
    row += [ours.samples, ours.failed, "; ".join(cell.differences)]
    return [*row, cell.claimed_tokens, cell.median_tokens, cell.most_tokens]


def _places(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _scorings(cells: Sequence[Cell]) -> list[str]:
    """All scorings, the paper's first."""
    names = dict.fromkeys(one.scoring for cell in cells for one in cell.ours.scores)
    return sorted(names, key=lambda name: name != _PAPER_SCORING)


def markdown_table(cells: Sequence[Cell]) -> str:
    """The table, with what has to be known to read it above and its notes below."""
    scorings = _scorings(cells)
    notes: dict[str, int] = {}
    rows = [_row(cell, scorings, notes) for cell in cells]
    head = ["benchmark", "run", "paper (table)"]
    head += [f"ours, {name} scoring" for name in scorings]
    head += ["samples", "prompt tokens: median, most (claimed)", "settings that differ"]
    loud = dict.fromkeys(
        f"**{NOT_COMPARABLE}: {cell.ours.run}: {cell.not_comparable}.**\n"
        for cell in cells
        if cell.not_comparable
    )
    values = _all_values(cells, notes)
    told = "".join(f"{number}. {note}\n" for note, number in notes.items())
    parts = [
        "# The paper against us\n",
        *loud,
        f"{_HOW_TO_READ}\n",
        table(head, rows),
        *((f"## Contradictions inside the paper\n\n{told}",) if told else ()),
        values,
    ]
    return "\n".join(part for part in parts if part)


_HOW_TO_READ = (
    "Percent, ours with 95 % intervals. The paper's values are to be compared with the paper's "
    "scoring. Claimed tokens are tokens a frame times frames, as in the paper's Table 5; "
    "Qwen2.5-VL reads two frames as one, so that a full video has half as many. Numbers in "
    "brackets are contradictions."
)


def _row(cell: Cell, scorings: Sequence[str], notes: dict[str, int]) -> list[str]:
    ours = cell.ours
    scores = {one.scoring: one for one in ours.scores}
    theirs = [_paper_text(value, notes) for value in cell.paper]
    failed = f" ({ours.failed} failed)" if ours.failed else ""
    loud = [f"**{NOT_COMPARABLE}**"] if cell.not_comparable else []
    return [
        _safe(text)
        for text in (
            cell.name,
            f"{ours.run}: {ours.model}, {ours.method}",
            "<br>".join(theirs) or "not reported",
            *(_score_text(scores.get(name)) for name in scorings),
            f"{ours.samples}{failed}",
            _tokens_text(cell),
            "<br>".join([*loud, f"recipe {ours.recipe}", *cell.differences]),
        )
    ]


def _paper_text(value: PaperCell, notes: dict[str, int]) -> str:
    numbers = _numbers_text(value.contradictions, notes)
    return f"{value.value:g} ({value.table}: {value.row}){numbers}"


def _score_text(score: OurScore | None) -> str:
    if score is None:
        return "-"
    known = score.low is not None and score.high is not None
    return f"{score.value:.1f}" + (f" ({score.low:.1f}-{score.high:.1f})" if known else "")


def _tokens_text(cell: Cell) -> str:
    claimed = "not stated" if cell.claimed_tokens is None else f"{cell.claimed_tokens:,}"
    if cell.median_tokens is None:
        return f"- ({claimed})"
    return f"{cell.median_tokens:,}, {cell.most_tokens:,} ({claimed})"


def _all_values(cells: Sequence[Cell], notes: dict[str, int]) -> str:
    """Everything that the paper reports on the benchmarks of the cells."""
    paper = the_paper()
    tasks = [task for task in paper.tasks if any(cell.ours.task == task for cell in cells)]
    rows = [
        [row.table, row.row, *(_value_text(row, task, notes) for task in tasks)]
        for row in paper.rows
        if any(task in row.values for task in tasks)
    ]
    if not rows:
        return ""
    head = ["table", "row", *(paper.tasks[task].name for task in tasks)]
    return f"## All that the paper reports on these\n\n{table(head, rows)}"


def _value_text(row: PaperRow, task: str, notes: dict[str, int]) -> str:
    """A value with the numbers of what contradicts it."""
    if task not in row.values:
        return ""
    contradictions = the_paper().contradictions_of(task, row)
    return f"{row.values[task]:g}" + _numbers_text(contradictions, notes)


def _numbers_text(contradictions: Sequence[str], notes: dict[str, int]) -> str:
    return "".join(f" [{notes.setdefault(one, len(notes) + 1)}]" for one in contradictions)


def _safe(text: str) -> str:
    """A text that cannot end its cell."""
    return text.replace("|", "\\|").replace("\n", " ")
