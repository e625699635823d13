"""`report.md` of a run: accuracy under both scorings, what failed, and what was really asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videonsa.disk import write_atomic
from videonsa.evals.field.paper import the_paper
from videonsa.evals.field.recipe import Recipe
from videonsa.evals.field.scored_run import (
    DEMONSTRATION,
    NOT_COMPARABLE,
    FieldScores,
    RunConfig,
    Spread,
)
from videonsa.evals.field.scoring.rules import LMMS, PAPER, RULES
from videonsa.evals.field.scoring.totals import Total
from videonsa.evals.markdown import provenance, table

REPORT = "report.md"
_MOST_REASONS, _MOST_KEYS = 20, 10


def write_report(
    folder: Path, config: RunConfig, scores: FieldScores, machine: Mapping[str, Any]
) -> None:
    """Write `report.md`."""
    write_atomic(folder / REPORT, report_text(config, scores, machine))


def report_text(config: RunConfig, scores: FieldScores, machine: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    paper = the_paper().tasks.get(config.benchmark)
    title = config.benchmark if paper is None else f"{paper.name} ({config.benchmark})"
    parts = [
        f"# {title}\n",
        *([f"**{NOT_COMPARABLE}: {DEMONSTRATION}.**\n"] if config.demonstration else []),
        f"{config.model} with {_method(config)}, recipe {config.recipe}. {_counted(scores)}\n",
        _accuracy(config, scores),
        *_listed("Notes", scores.notes),
        _recipe(config),
        _prompts(config.asked, scores),
        *_failures(scores),
        _scorings(config, scores),
        *_categories(scores),
        *_own(scores),
        provenance(machine) + "\n",
    ]
    return "\n".join(parts)


def _method(config: RunConfig) -> str:
    options = config.method_parameters or {}
    told = ", ".join(f"{name} {value}" for name, value in options.items())
    return f"{config.method} ({told})" if told else config.method


def _counted(scores: FieldScores) -> str:
    return f"{scores.samples} samples, {scores.failed} of them failed."


def accuracy_cell(total: Total) -> str:
    """Percent with its interval."""
    if total.value is None:
        return "not scored"
    known = total.low is not None and total.high is not None
    interval = f" ({total.low:.1f}-{total.high:.1f})" if known else ""
    return f"{total.value:.2f}{interval}"


def _accuracy(config: RunConfig, scores: FieldScores) -> str:
    published = config.asked.scoring
    rows = [
        [
            f"{one.scoring} (the published number's)" if one.scoring == published else one.scoring,
            accuracy_cell(one),
            str(one.samples),
            accuracy_cell(every),
            str(every.samples),
            str(one.unparsed),
            str(one.drawn),
        ]
        for one, every in zip(scores.totals.answered, scores.totals.all, strict=True)
    ]
    head = ["scoring", "over answered", "samples", "over all", "samples"]
    head += ["nothing found in", "drawn"]
    return (
        "## Accuracy\n\nPercent with 95 % intervals, by the bootstrap over videos. Over all, a "
        "failed sample counts as wrong; it is no answer, and stands for nothing the model said.\n\n"
        + table(head, rows)
    )


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}\n\n" + "".join(f"- {line}\n" for line in lines)] if lines else []


def _recipe(config: RunConfig) -> str:
    recipe = config.asked
    rows = [
        ["frames a second, at most frames", f"{recipe.fps:g}, {recipe.max_frames}"],
        [
            "pixels of a frame",
            f"{recipe.min_pixels} to {recipe.max_pixels} ({recipe.tokens_a_frame} tokens a frame)",
        ],
        ["most video tokens", str(recipe.max_video_tokens or "not bounded")],
        ["new tokens, temperature", f"{recipe.max_new_tokens}, {recipe.temperature:g}"],
        ["system message", recipe.system],
        [
            "before, after the question",
            f"{_prompt(recipe.pre_prompt)}, {_prompt(recipe.post_prompt)}",
        ],
        *([f"{before!r} in the prompt", repr(after)] for before, after in recipe.replaced),
        ["documents of a task", "all" if config.limit is None else f"the first {config.limit}"],
    ]
    lines = [
        *(f"Differs from the recipe: {one}." for one in config.differences),
        *(f"{note[0].upper()}{note[1:]}." for note in recipe.notes),
        *(f"Source: {source}" for source in recipe.sources),
    ]
    rows = [[name, value.replace("|", "\\|").replace("\n", "\\n")] for name, value in rows]
    return (
        f"## Recipe {config.recipe}\n\n{recipe.summary[0].upper()}{recipe.summary[1:]}. With all "
        f"differences its hash is {config.settings_digest}.\n\n{table(['setting', 'value'], rows)}"
        + "\n"
        + "".join(f"- {line}\n" for line in lines)
    )


def _prompt(text: str | None) -> str:
    return "as lmms-eval's task says" if text is None else repr(text)


def _prompts(recipe: Recipe, scores: FieldScores) -> str:
    claimed = recipe.tokens_a_frame * recipe.max_frames
    measured = [
        ("tokens of a prompt", scores.prompt_tokens, ",.0f"),
        ("of images and videos", scores.video_tokens, ",.0f"),
        ("share of dense attention's pairs", scores.density, ".4f"),
    ]
    rows = [[name, *_cells(spread, form)] for name, spread, form in measured]
    return (
        "## Prompts as they were\n\n"
        + table(["", "least", "median", "most"], rows)
        + f"\nTokens a frame times frames, as papers count, are {claimed:,}. Qwen2.5-VL reads two "
        "frames as one, so that a full video has half as many.\n"
    )


def _cells(spread: Spread | None, form: str) -> list[str]:
    if spread is None:
        return ["-"] * 3
    return [format(value, form) for value in (spread.least, spread.median, spread.most)]


def _failures(scores: FieldScores) -> list[str]:
    shown = [f"{one.count}: {one.reason}" for one in scores.reasons[:_MOST_REASONS]]
    left = len(scores.reasons) - len(shown)
    return _listed("Failed samples", [*shown, *([f"and {left} other reasons"] if left else [])])


def _scorings(config: RunConfig, scores: FieldScores) -> str:
    rules = RULES[config.benchmark]
    said = (
        "Both scorings have the same rule"
        if rules.same
        else f"How {PAPER} and {LMMS} differ: {rules.differs}"
    )
    judged = (
        f" {rules.differs[0].upper()}{rules.differs[1:]}." if rules.same and rules.differs else ""
    )
    values = [
        (line.key, [score.value for score in line.scores if score.value is not None])
        for line in scores.lines
    ]
    differ = [key for key, found in values if len(set(found)) > 1]
    if not any(
        len(found) == len(line.scores) == 2
        for line, (_, found) in zip(scores.lines, values, strict=True)
    ):
        told = "No sample has both scores."
    elif not differ:
        told = "They score every sample alike."
    else:
        more = ", ..." if len(differ) > _MOST_KEYS else ""
        told = (
            f"They score {len(differ)} samples differently: {', '.join(differ[:_MOST_KEYS])}{more}."
        )
    return f"## Scorings\n\n{said}.{judged} {told}\n"


def _categories(scores: FieldScores) -> list[str]:
    if not scores.totals.categories:
        return []
    names = [one.scoring for one in scores.totals.answered]
    rows = [
        [one.field, one.kind, str(max(total.samples for total in one.totals))]
        + [accuracy_cell(total) for total in one.totals]
        for one in scores.totals.categories
    ]
    return ["## By category, over answered\n\n" + table(["field", "kind", "samples", *names], rows)]


def _own(scores: FieldScores) -> list[str]:
    rows = []
    for task, metrics in scores.own.items():
        for metric, value in metrics.items():
            parts = value.items() if isinstance(value, Mapping) else [("", value)]
            rows += [
                [task, " ".join(filter(None, (metric, part))), str(one)] for part, one in parts
            ]
    if not rows:
        return []
    return [
        "## What lmms-eval makes of the answered samples\n\nBy its own aggregation, on its own "
        "scale: of 1 or of 100.\n\n" + table(["task", "metric", "value"], rows)
    ]
