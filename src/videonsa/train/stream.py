"""Packed batches as an endless stream for the Trainer; epochs follow each other without a break."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videonsa.data.collate import PackedBatch
from videonsa.data.loader import PackedLoader
from videonsa.data.sampler import PackSampler
from videonsa.train.settings import OptimizerSettings


class RunLength(NamedTuple):
    """How long a run is."""

    steps: int
    """Of the optimizer."""
    accumulated: int
    """Sequences of a step that each process computes."""
    batches: int
    """Sequences of the run that each process computes: fewer than a step has may be left at the
    end, for the last step."""


def run_length(optimizer: OptimizerSettings, sampler: PackSampler) -> RunLength:
    """How long the run of a recipe is: an epoch is an epoch, also where it is less than a step.

    Args:
        optimizer: of the recipe.
        sampler: of this process, at its beginning.
    """
    an_epoch = len(sampler)
    if sampler.step is None:
        accumulated = optimizer.batch_size // sampler.world_size
    else:
        accumulated = sampler.step.packs // sampler.world_size
    if optimizer.steps is not None:
        return RunLength(optimizer.steps, accumulated, optimizer.steps * accumulated)
    batches = an_epoch * optimizer.epochs
    return RunLength(-(-batches // accumulated), accumulated, batches)


class PackStream:
    """The batches of one process, from the present position of its loader on.

    Every step but the last of a run has the same number of sequences: if the batch size does not
    divide an epoch, a step takes the last sequences of one epoch and the first of the next. A
    checkpoint only has to keep the position of the loader.

    Args:
        loader: of this process.
        num_batches: how many this process still computes.
    """

    def __init__(self, loader: PackedLoader, *, num_batches: int) -> None:
        self.loader = loader
        self._num_batches = num_batches

    def __len__(self) -> int:
        """Batches that are still to come; 1 after the last, as the Trainer knows no empty run."""
        return max(self._num_batches, 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Endless: the Trainer counts the steps."""
        while True:
            for batch in self.loader:
                # Patches are made when the batch is used: those of a whole step would take much
                # more memory than the frames as bytes.
                yield {"input_ids": batch.input_ids, "labels": batch.labels, "batch": batch}


def resume_stream(loader: PackedLoader, checkpoint: Path, *, process: int) -> None:
    """Resume a loader from a checkpoint, whatever the number of processes that wrote it."""
    path = checkpoint / f"loader_{process}.json"
    path = path if path.exists() else checkpoint / "loader_0.json"
    loader.load_state_dict(json.loads(path.read_text("utf-8")))


def vision_masks(batch: PackedBatch, vision_ids: tuple[int, int]) -> list[Any]:
    """For each sample, bool `[T]`: which of its tokens belong to an image or a video."""
    ids = batch.input_ids[0].numpy()
    return np.split(np.isin(ids, vision_ids), batch.cu_seqlens[1:-1].tolist())


def frame_patches(batch: PackedBatch) -> list[int]:
    """The number of patches in each temporal patch of all videos and images."""
    sampling = batch.sampling
    found = []
    for clip in (*batch.videos, *batch.images):
        patches = clip.shape[2] * clip.shape[3] // sampling.patch_size**2
        found += [patches] * -(-clip.shape[0] // sampling.temporal_patch_size)
    return found
