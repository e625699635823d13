"""Packed batches as the Trainer takes them: one after the other, epochs without a border."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from videonsa.data.collate import PackedBatch
from videonsa.data.loader import PackedLoader


class PackStream:
    """The batches of one process that are still to come.

    An epoch goes over into the next within a step where the batch does not divide it, so that all
    steps have equally many sequences. Where the loader stands is all that a checkpoint needs.

    Args:
        loader: of this process.
        num_batches: that it takes part in, over the whole run.
    """

    def __init__(self, loader: PackedLoader, *, num_batches: int) -> None:
        self.loader = loader
        self._num_batches = num_batches

    def __len__(self) -> int:
        """Batches of the whole run, done or not."""
        return self._num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Without end: the Trainer counts the steps."""
        while True:
            for batch in self.loader:
                # Patches are made when the batch is used: those of a whole step take much more
                # room than frames as bytes.
                yield {"input_ids": batch.input_ids, "labels": batch.labels, "batch": batch}


def resume_stream(loader: PackedLoader, checkpoint: Path, *, process: int) -> None:
    """Let a loader go on where a checkpoint was taken, by however many processes."""
    path = checkpoint / f"loader_{process}.json"
    path = path if path.exists() else checkpoint / "loader_0.json"
    loader.load_state_dict(json.loads(path.read_text("utf-8")))


def vision_masks(batch: PackedBatch, vision_ids: tuple[int, int]) -> list[Any]:
    """Of each sample, bool `[T]`: which of its tokens stand for an image or a video."""
    ids = batch.input_ids[0].numpy()
    return np.split(np.isin(ids, vision_ids), batch.cu_seqlens[1:-1].tolist())


def frame_patches(batch: PackedBatch) -> list[int]:
    """Patches of each temporal patch of all videos and images."""
    sampling = batch.sampling
    found = []
    for clip in (*batch.videos, *batch.images):
        patches = clip.shape[2] * clip.shape[3] // sampling.patch_size**2
        found += [patches] * -(-clip.shape[0] // sampling.temporal_patch_size)
    return found
