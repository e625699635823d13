"""What one seed gave: how its models were trained, and all that they answered, as two files."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml

from benchmarks.study.answering import VideoLine, parse_line
from benchmarks.study.study_design import STILL, Design, Run
from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.evals.journal import SAMPLES, read_lines
from videonsa.parsing import one_line, read_json_object
from videonsa.rendered.suite2 import KINDS
from videonsa.train.folder import LOG, RECIPE, RUN
from videonsa.train.reading import recipe_of

FORMAT = 2
CURVE_POINTS = 40
"""Most points that are kept of a loss curve."""
_PASSED = 0.95
"""Share of right answers about held-out stills from which on they count as learnt."""


class SeedResult(NamedTuple):
    """The two files of a seed, read."""

    facts: dict[str, Any]
    answers: dict[str, list[VideoLine]]
    """By arm."""


def write_seed(design: Design, seed: int, out: Path, *, machine: dict[str, Any]) -> dict[str, Any]:
    """Write `seed-N.json` and `seed-N-answers.jsonl.gz`; gives what the first says.

    Whatever is not trained or not answered yet is left out, and named under `left_out`.
    """
    runs = [run for run in design.all_runs() if run.seed == seed]
    trained = [run for run in runs if run.model(out).is_dir()]
    answers = {run.arm: _answers(run, out) for run in design.last_runs() if run in trained}
    first = next(run for run in runs if run.stage == design.stages[0].name)
    stills = [line for line in _answers(first, out) if line.length == STILL]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "seed": seed,
        "design": json.loads(json.dumps(asdict(design))),
        "runs": [_run(run, out) for run in trained],
        "stills": _shares(stills),
        "left_out": [
            *(f"{run.name} is not trained" for run in runs if run not in trained),
            *_unanswered(design, answers, stills),
            *(
                f"held-out stills: {kind} is {share:.1%} right, below {_PASSED:.0%}"
                for kind, share in _shares(stills).items()
                if share < _PASSED
            ),
        ],
        "machine": machine,
    }
    text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
    lines = [
        json.dumps(asdict(line) | {"arm": arm}, separators=(",", ":")) + "\n"
        for arm, found in answers.items()
        for line in found
    ]
    # Without the time, so that equal answers are equal files.
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    write_atomic(out / f"seed-{seed}-answers.jsonl.gz", packed)
    write_atomic(out / f"seed-{seed}.json", text.encode())
    return facts


def read_seed(path: Path) -> SeedResult:
    """Read `seed-N.json` and the answers beside it.

    Raises:
        UsageError: one of the two is missing, or of another version.
    """
    facts = read_json_object(path, remedy="copy both files of a seed")
    if facts.get("format") != FORMAT:
        raise UsageError(f"{path} is not of this version: want format {FORMAT}; run the seed again")
    answers: dict[str, list[VideoLine]] = {}
    beside = path.with_name(f"{path.stem}-answers.jsonl.gz")
    try:
        for text in gzip.decompress(beside.read_bytes()).decode().splitlines():
            content = json.loads(text)
            answers.setdefault(content.pop("arm"), []).append(parse_line(content))
    except (OSError, EOFError, ValueError, TypeError, LookupError) as error:
        raise UsageError(
            f"{beside} cannot be read ({one_line(error)}): copy both files of a seed"
        ) from error
    return SeedResult(facts, answers)


def _answers(run: Run, out: Path) -> list[VideoLine]:
    folders = sorted(path.parent for path in run.answers(out).glob(f"*/{SAMPLES}"))
    lines = {line.key: line for folder in folders for line in read_lines(folder, parse_line)}
    return [lines[key] for key in sorted(lines)]


def _unanswered(
    design: Design, answers: dict[str, list[VideoLine]], stills: list[VideoLine]
) -> Iterator[str]:
    if len(stills) < design.stills:
        yield f"held-out stills: {len(stills)} of {design.stills} were asked about"
    gates = sum(bool(line.only) for line in answers.get("nsa", ()))
    if "nsa" in answers and gates < (wanted := len(KINDS) * design.gate_videos):
        yield f"nsa was shown {gates} of {wanted} videos of a single kind"
    for arm, lines in answers.items():
        for length, wanted in design.videos:
            found = sum(line.length == length and not line.only for line in lines)
            if found < wanted:
                yield f"{arm} answered {found} of {wanted} videos of {length:,} tokens"


def _shares(lines: list[VideoLine]) -> dict[str, float]:
    """Right free answers of each kind."""
    found: dict[str, list[bool]] = {}
    for line in lines:
        for kind, right in zip(line.kinds, line.free, strict=True):
            found.setdefault(kind, []).append(right)
    return {kind: sum(right) / len(right) for kind, right in found.items()}


def _run(run: Run, out: Path) -> dict[str, Any]:
    """Facts of a run, with its loss curve."""
    folder = run.folder(out)
    facts = json.loads((folder / RUN).read_text("utf-8"))
    recipe = recipe_of(run.stage, yaml.safe_load((folder / RECIPE).read_text("utf-8")))
    logged = [json.loads(line) for line in (folder / LOG).read_text("utf-8").splitlines()]
    losses = [(line["step"], round(line["loss"], 4)) for line in logged if "loss" in line]
    every = max(-(-len(losses) // CURVE_POINTS), 1)
    rates = {
        name: median(found)
        for name in ("tokens_per_second", "mfu")
        if (found := [line[name] for line in logged if name in line])
    }
    return {
        "name": run.name,
        "stage": run.stage,
        "arm": run.arm,
        "steps": max((line["step"] for line in logged), default=0),
        "learning_rate": recipe.optimizer.learning_rate,
        "context": recipe.data.context,
        "tokens": max((line.get("tokens", 0) for line in logged), default=0),
        "videos": facts["num_samples"],
        "data_hash": facts["data_hash"],
        "losses": [losses[i] for i in range(len(losses)) if i % every == 0 or i + 1 == len(losses)],
        **rates,
        "device": facts["device"],
        "versions": facts["versions"],
    }
