"""Trained models in bfloat16, in parts of limited size, with checksums that tell them whole."""

import hashlib
from pathlib import Path

import torch

from benchmarks.study.study_design import Design
from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.models.checkpoints.convert import convert

PART_BYTES = 15 * 2**20
"""Most bytes of a part."""
SUMS = "SHA256SUMS"


def keep_models(design: Design, out: Path, folder: Path) -> list[Path]:
    """Write the model of every last run: its files, the weights in parts, and checksums.

    `cat model.safetensors.?? > model.safetensors` puts the weights together again.

    Args:
        design: of the study.
        out: its folder.
        folder: for a folder of each model.

    Returns:
        The files that were written.

    Raises:
        UsageError: no run has its model yet.
    """
    done = [run for run in design.last_runs() if run.model(out).is_dir()]
    if not done:
        raise UsageError(f"no run of the last stage in {out} has its model yet: train first")
    written: list[Path] = []
    for run in done:
        target = folder / run.name
        convert(run.model(out), target, dtype=torch.bfloat16, force=True)
        sums = [f"{_digest(path)}  {path.name}\n" for path in sorted(target.iterdir())]
        for weights in target.glob("*.safetensors"):
            content = weights.read_bytes()
            if len(content) > PART_BYTES:
                for number, first in enumerate(range(0, len(content), PART_BYTES)):
                    part = weights.with_name(f"{weights.name}.{number:02}")
                    write_atomic(part, content[first : first + PART_BYTES])
                weights.unlink()
        write_atomic(target / SUMS, "".join(sums).encode())
        written += sorted(target.iterdir())
    return written


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
