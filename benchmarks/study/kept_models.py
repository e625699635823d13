"""One pair of twins as checkpoints of the repository, each with a model card."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.study_design import TRAINING_TOKENS, Design
from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.evals.markdown import table
from videonsa.evals.scoring import Accuracy
from videonsa.models.checkpoints.convert import convert

MOST_BYTES = 12 * 10**6
"""Most bytes of a checkpoint in the repository."""


def keep_pair(design: Design, out: Path, folder: Path, *, seed: int) -> list[Path]:
    """Write `study-nsa` and `study-dense` in bfloat16, each with a model card.

    Args:
        design: of the study.
        out: its folder, with `study.json` and the models, in `runs` or unpacked in `models`.
        folder: for the two checkpoints.
        seed: of the pair.

    Returns:
        The files that were written.

    Raises:
        UsageError: result or models are missing, or a checkpoint is larger than `MOST_BYTES`.
    """
    path = out / f"{design.name}.json"
    if not path.exists():
        raise UsageError(f"{path} is not there: run 'report' first")
    result = json.loads(path.read_text("utf-8"))
    written: list[Path] = []
    for run in design.twins():
        if run.seed != seed:
            continue
        found = [place for place in (run.model(out), out / "models" / run.name) if place.is_dir()]
        if not found:
            raise UsageError(f"{run.name} has no model in {out}: train it, or unpack the models")
        target = folder / f"study-{run.attention}"
        convert(found[0], target, dtype=torch.bfloat16, force=True)
        write_atomic(target / "README.md", _card(result, run.attention, seed).encode())
        files = sorted(target.iterdir())
        size = sum(file.stat().st_size for file in files)
        if size > MOST_BYTES:
            raise UsageError(f"{target}: {size} bytes: want at most {MOST_BYTES}")
        written += files
    if not written:
        raise UsageError(f"seed {seed}: want one of {', '.join(map(str, design.seeds))}")
    return written


def _card(result: dict[str, Any], attention: str, seed: int) -> str:
    words = {"nsa": "native sparse attention", "dense": "dense attention"}
    rows = []
    for score in result["scores"]:
        mine = (score["attention"], score["seed"], score["kind"]) == (attention, seed, "all")
        if mine:
            one = Accuracy(score["right"], score["total"])
            low, high = (f"{100 * x:.1f}" for x in one.interval)
            rows.append([f"{score['length']:,}", f"{100 * one.share:.1f} ({low}-{high})"])
    return (
        "---\nlicense: apache-2.0\nlibrary_name: videonsa\n---\n\n"
        f"# Study model: {words[attention]}\n\n"
        f"One of two twins that were trained alike on rendered videos of {TRAINING_TOKENS:,} "
        f"tokens and differ only in how vision tokens attend; seed {seed}. It knows nothing of "
        "real videos. docs/study.md says how both were trained, docs/results.md what all seeds "
        "score.\n\n"
        "    videonsa ask VIDEO QUESTION --model THIS_FOLDER\n\n"
        "Right answers in percent on the suite's test split, difficulty easy, all kinds of "
        "question (95 % Wilson intervals):\n\n" + table(["video tokens", "right"], rows)
    )
