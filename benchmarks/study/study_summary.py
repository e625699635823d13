"""`study.json`: what was trained, loss curves, and what the twins answered."""

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from benchmarks.study.study_design import FRAME_SIZE, Design, Run
from videonsa.errors import UsageError
from videonsa.evals.journal import SAMPLES
from videonsa.evals.scoring import Z_95, best_constant
from videonsa.evals.tasks.suite.suite_line import SuiteLine, read_suite_lines
from videonsa.models.methods import NSA, SPARSE
from videonsa.ops.spec import NSASpec
from videonsa.rendered.suite import KINDS
from videonsa.train.folder import LOG, RECIPE, RUN
from videonsa.train.reading import recipe_of

FORMAT = 1
ALL = "all"
"""All kinds of question together."""
CURVE_POINTS = 60
"""Most points that are kept of a loss curve."""
_GATES = "gates/"
_PATCH = 28
_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's two-sided 95 % quantile by degrees of freedom."""


def summarise(design: Design, out: Path, *, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The whole study as a JSON object.

    Args:
        design: of the study.
        out: folder of the study, with all runs trained and all questions answered.
        machine: facts of the machine that the numbers were measured on.

    Raises:
        UsageError: a run is not trained, or a question not answered yet.
    """
    unfinished = [run.name for run in design.all_runs() if not design.is_done(run, out)]
    if unfinished:
        raise UsageError(f"not trained yet: {', '.join(unfinished)}: run 'train' again")
    lines = {run: _answers(design, run, out) for run in design.twins()}
    scores = [
        {
            "attention": run.attention,
            "seed": run.seed,
            "length": length,
            "kind": kind,
            "right": sum(line.right for line in cell),
            "total": len(cell),
        }
        for run, answers in lines.items()
        for length in design.lengths
        for kind in (*KINDS, ALL)
        if (cell := _cell(answers, length, kind))
    ]
    asked = next(iter(lines.values()))
    return {
        "format": FORMAT,
        "design": json.loads(json.dumps(asdict(design))),
        "runs": [_run(run, out) for run in design.all_runs()],
        "attention": _attention(design, out),
        "scores": scores,
        "constant": _constants(design, asked),
        "differences": _differences(design, lines),
        "machine": dict(machine),
    }


def is_answered(design: Design, run: Run, out: Path, length: int) -> bool:
    """Whether a twin has answered every question about videos of a length."""
    folder = design.answers(run, out, length)
    return (folder / "report.json").exists() and len(read_suite_lines(folder)) >= _questions(design)


def _questions(design: Design) -> int:
    return design.samples * len(KINDS)


def _answers(design: Design, run: Run, out: Path) -> list[SuiteLine]:
    for length in design.lengths:
        if not is_answered(design, run, out, length):
            raise UsageError(
                f"{run.name} has not answered all about {length} tokens: run 'evaluate' again"
            )
    return [
        line
        for length in design.lengths
        for line in read_suite_lines(design.answers(run, out, length))
    ]


def all_answers(design: Design, out: Path) -> bytes:
    """All answers of the twins as gzipped lines, from which the numbers are counted.

    The model of a line is the name of its run instead of a path.
    """
    lines = [
        json.dumps(json.loads(line) | {"model": run.name}, ensure_ascii=False) + "\n"
        for run in design.twins()
        for length in design.lengths
        for line in (design.answers(run, out, length) / SAMPLES).read_text("utf-8").splitlines()
    ]
    return gzip.compress("".join(lines).encode(), mtime=0)


def _cell(lines: Sequence[SuiteLine], length: int, kind: str) -> list[SuiteLine]:
    return [x for x in lines if x.length == length and kind in (ALL, x.kind)]


def _run(run: Run, out: Path) -> dict[str, Any]:
    """Facts of a run, with its loss curve."""
    folder = run.folder(out)
    facts = json.loads((folder / RUN).read_text("utf-8"))
    recipe = recipe_of(run.stage, yaml.safe_load((folder / RECIPE).read_text("utf-8")))
    logged = [json.loads(line) for line in (folder / LOG).read_text("utf-8").splitlines()]
    losses = [(line["step"], round(line["loss"], 4)) for line in logged if "loss" in line]
    every = -(-len(losses) // CURVE_POINTS)
    gates = [line for line in logged if any(name.startswith(_GATES) for name in line)]
    return {
        "name": run.name,
        "stage": run.stage,
        "seed": run.seed,
        "attention": run.attention,
        "steps": losses[-1][0],
        "learning_rate": recipe.optimizer.learning_rate,
        "context": recipe.data.context,
        "sequences_a_step": recipe.optimizer.batch_size,
        "tokens": max(line.get("tokens", 0) for line in logged),
        "videos": facts["num_samples"],
        "data_hash": facts["data_hash"],
        "losses": [losses[i] for i in range(len(losses)) if i % every == 0 or i + 1 == len(losses)],
        "gates": {k: v for k, v in gates[-1].items() if k.startswith(_GATES)} if gates else {},
        "device": facts["device"],
        "versions": facts["versions"],
    }


def _attention(design: Design, out: Path) -> dict[str, Any]:
    """What a vision token attends to under NSA, and its share of dense causal attention."""
    run = next(run for run in design.twins() if run.attention == SPARSE)
    recipe = recipe_of(
        run.stage, yaml.safe_load((run.folder(out) / RECIPE).read_text("utf-8"))
    ).attention
    method = recipe.method()
    assert isinstance(method, NSA), "an NSA run has a spec"
    spec = method.spec
    return {
        "block_size": recipe.block_size,
        "num_selected_blocks": recipe.num_selected_blocks,
        "window_size": recipe.window_size,
        "keys": spec.attention_keys(_frame_tokens()),
        "shares": {str(length): attended_shares(spec, length) for length in design.lengths},
    }


def _frame_tokens() -> int:
    return (FRAME_SIZE // _PATCH) ** 2


def attended_shares(spec: NSASpec, tokens: int) -> dict[str, float]:
    """(query, key) pairs of the vision tokens of a video, over those of dense causal attention.

    Args:
        spec: with blocks of a frame, each of (FRAME_SIZE / 28)^2 tokens.
        tokens: of the video.

    Returns:
        `selected_and_window`: the keys that the paper counts, at most K a query, or all up to the
            query if those are fewer. `all`: also the compressed keys, one for each frame before
            the query's own.
    """
    frame = _frame_tokens()
    selected = spec.attention_keys(frame) - spec.window_size
    dense = tokens * (tokens + 1) // 2
    pairs = sum(_up_to(tokens, most) for most in (selected, spec.window_size))
    frames = tokens // frame
    compressed = frame * frames * (frames - 1) // 2
    return {"selected_and_window": pairs / dense, "all": (pairs + compressed) / dense}


def _up_to(tokens: int, most: int) -> int:
    """Keys of all queries together, where each has at most `most` of those up to its own."""
    rising = min(tokens, most)
    return rising * (rising + 1) // 2 + max(tokens - most, 0) * most


def _constants(design: Design, lines: Sequence[SuiteLine]) -> list[dict[str, Any]]:
    """Right answers of the best constant answer to each kind."""
    found: list[dict[str, Any]] = []
    for length in design.lengths:
        by_kind = {kind: best_constant(_cell(lines, length, kind)) for kind in KINDS}
        entries = [(kind, one.right, one.total) for kind, one in by_kind.items()]
        entries.append((ALL, sum(x[1] for x in entries), sum(x[2] for x in entries)))
        found += [
            {"length": length, "kind": kind, "right": right, "total": total}
            for kind, right, total in entries
        ]
    return found


def _differences(design: Design, lines: Mapping[Run, Sequence[SuiteLine]]) -> list[dict[str, Any]]:
    """NSA minus dense in points: of each seed, their mean, and two 95 % intervals of the mean."""
    found: list[dict[str, Any]] = []
    for length in design.lengths:
        for kind in (*KINDS, ALL):
            pairs = [_paired(lines, seed, length, kind) for seed in design.seeds]
            of_seeds = [100 * mean(one) for one in pairs]
            every = [100 * x for one in pairs for x in one]
            half = Z_95 * stdev(every) / math.sqrt(len(every)) if len(every) > 1 else math.inf
            found.append(
                {
                    "length": length,
                    "kind": kind,
                    "points": mean(of_seeds),
                    "of_seeds": of_seeds,
                    "over_seeds": _student(of_seeds),
                    "over_questions": None if math.isinf(half) else half,
                }
            )
    return found


def _student(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean; None for a single value."""
    if len(values) < 2:
        return None
    quantile = _T_95.get(len(values) - 1, Z_95)
    return quantile * stdev(values) / math.sqrt(len(values))


def _paired(
    lines: Mapping[Run, Sequence[SuiteLine]], seed: int, length: int, kind: str
) -> list[int]:
    """For each question: 1 if only NSA is right, -1 if only dense is, else 0."""
    right: dict[str, dict[tuple[int, str], bool]] = {}
    for run, answers in lines.items():
        if run.seed == seed:
            cell = _cell(answers, length, kind)
            right[run.attention] = {(line.seed, line.kind): line.right for line in cell}
    return [int(right["nsa"][key]) - int(is_right) for key, is_right in right["dense"].items()]
