"""The paper against us, cell by cell: its values and contradictions, ours, and what differs."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videonsa.evals.field.paper import PaperRow, PaperTask, the_paper
from videonsa.evals.field.scored_run import (
    DEMONSTRATION,
    NOT_COMPARABLE,
    FieldScores,
    RunConfig,
    earlier_state,
    read_config,
    read_scores,
)
from videonsa.evals.field.scoring.rules import SCORINGS
from videonsa.evals.field.scoring.totals import Total
from videonsa.evals.markdown import table


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
    """What differs from the recipe, and what else has to be known to compare, a few words each."""
    samples: int
    failed: int = 0
    """Of the samples; they have no answer."""
    answered: tuple[Total, ...]
    """Of each scoring, over samples with an answer."""
    all: tuple[Total, ...]
    """A failure counts as wrong."""
    median_tokens: int | None = None
    """Of the prompts of answered samples."""
    most_tokens: int | None = None


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
    """Of a video, as the paper counts."""

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return the_paper().tasks.get(self.ours.task, PaperTask(name=self.ours.task)).name


def read_cell(folder: Path) -> Cell:
    """A run of `eval benchmark` beside the paper.

    Raises:
        UsageError: the folder is no such run, or is not scored yet.
    """
    config, scores = read_config(folder), read_scores(folder)
    earlier = earlier_state(folder, config, scores)
    notes = () if earlier is None else (earlier,)
    return compare(our_result(str(folder), config, scores, notes=notes))


def our_result(
    run: str, config: RunConfig, scores: FieldScores, *, notes: Sequence[str] = ()
) -> OurResult:
    """A run on its benchmark.

    Args:
        run: its name.
        config: what it asks.
        scores: of its samples.
        notes: what else has to be known, a few words each.
    """
    recipe, tokens = config.asked, scores.prompt_tokens
    limit = () if config.limit is None else (f"the first {config.limit} documents of a task",)
    return OurResult(
        run=run,
        task=config.benchmark,
        model=config.model,
        demonstration=config.demonstration,
        method=config.method,
        parameters=config.method_parameters or {},
        recipe=config.recipe,
        settings=PaperTask(
            name=config.benchmark,
            tokens_a_frame=recipe.tokens_a_frame,
            frames=recipe.max_frames,
            fps=recipe.fps,
            max_new_tokens=recipe.max_new_tokens,
        ),
        changed=(*notes, *config.differences, *limit, *recipe.notes, *scores.notes),
        samples=scores.samples,
        failed=scores.failed,
        answered=scores.totals.answered,
        all=scores.totals.all,
        median_tokens=None if tokens is None else round(tokens.median),
        most_tokens=None if tokens is None else round(tokens.most),
    )


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
    )


_BRANCHES = ("compressed", "selected", "window")


def _not_comparable(ours: OurResult, weights: str | None) -> str | None:
    if ours.demonstration:
        return DEMONSTRATION
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
    head = ["run", "model", "method", "recipe", "task", "not_comparable"]
    head += ["paper_table", "paper_row", "paper_value", "paper_contradictions"]
    for name in SCORINGS:
        head += [f"{name}_{part}" for part in ("score", "low", "high", "samples", "over_all")]
    head += ["samples", "failed", "differences"]
    head += ["claimed_tokens", "median_prompt_tokens", "most_prompt_tokens"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for cell in cells:
        for value in cell.paper or (None,):
            writer.writerow(_csv_row(cell, value))
    return text.getvalue()


def _csv_row(cell: Cell, value: PaperCell | None) -> list[Any]:
    ours = cell.ours
    row: list[Any] = [ours.run, ours.model, ours.method, ours.recipe, ours.task]
    row.append(cell.not_comparable)
    if value is None:
        row += [None] * 4
    else:
        row += [value.table, value.row, value.value, " ".join(value.contradictions)]
    for one, every in zip(ours.answered, ours.all, strict=True):
        row += map(_places, (one.value, one.low, one.high))
        row += [one.samples, _places(every.value)]
    row += [ours.samples, ours.failed, "; ".join(cell.differences)]
    return [*row, cell.claimed_tokens, ours.median_tokens, ours.most_tokens]


def _places(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def markdown_table(cells: Sequence[Cell]) -> str:
    """The table, with what has to be known to read it above and its notes below."""
    notes: dict[str, int] = {}
    rows = [_row(cell, notes) for cell in cells]
    head = ["benchmark", "run", "paper (table)"]
    head += [f"ours, {name} scoring" for name in SCORINGS]
    head += ["samples", "prompt tokens: median, most (claimed)", "what differs or has to be known"]
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


def _row(cell: Cell, notes: dict[str, int]) -> list[str]:
    ours = cell.ours
    theirs = [_paper_text(value, notes) for value in cell.paper]
    failed = f" ({ours.failed} failed)" if ours.failed else ""
    loud = [f"**{NOT_COMPARABLE}**"] if cell.not_comparable else []
    return [
        _safe(text)
        for text in (
            cell.name,
            f"{ours.run}: {ours.model}, {ours.method}",
            "<br>".join(theirs) or "not reported",
            *(
                _score_text(ours, one, every)
                for one, every in zip(ours.answered, ours.all, strict=True)
            ),
            f"{ours.samples}{failed}",
            _tokens_text(cell),
            "<br>".join([*loud, f"recipe {ours.recipe}", *cell.differences]),
        )
    ]


def _paper_text(value: PaperCell, notes: dict[str, int]) -> str:
    numbers = _numbers_text(value.contradictions, notes)
    return f"{_published(value.value)} ({value.table}: {value.row}){numbers}"


def _score_text(ours: OurResult, one: Total, every: Total) -> str:
    """Over answered samples with the interval; over all where some failed."""
    if one.value is None:
        return "not scored"
    told = f"{one.value:.1f}"
    if one.low is not None and one.high is not None:
        told += f" ({one.low:.1f}-{one.high:.1f})"
    if one.samples != ours.samples - ours.failed:
        told += f", {one.samples} scored"
    if ours.failed and every.value is not None:
        told += f"; over all {every.value:.1f}"
    return told


def _tokens_text(cell: Cell) -> str:
    claimed = "not stated" if cell.claimed_tokens is None else f"{cell.claimed_tokens:,}"
    if cell.ours.median_tokens is None:
        return f"- ({claimed})"
    return f"{cell.ours.median_tokens:,}, {cell.ours.most_tokens:,} ({claimed})"


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
    return _published(row.values[task]) + _numbers_text(contradictions, notes)


def _published(value: float) -> str:
    """With the places that the paper gives it: one, in few cells two."""
    return max(f"{value:.1f}", f"{value:g}", key=len)


def _numbers_text(contradictions: Sequence[str], notes: dict[str, int]) -> str:
    numbers = [notes.setdefault(one, len(notes) + 1) for one in contradictions]
    return "".join(f" [{number}]" for number in sorted(numbers))


def _safe(text: str) -> str:
    """A text that cannot end its cell."""
    return text.replace("|", "\\|").replace("\n", " ")
