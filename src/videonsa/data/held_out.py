"""The packed batches of a validation manifest: always the same, each counted once."""

from collections.abc import Iterator
from typing import NamedTuple

from videonsa.data.collate import PackedBatch
from videonsa.data.dataset import VideoDataset
from videonsa.data.loader import MAX_FAILED_SHARE, PackedLoader


class HeldOut(NamedTuple):
    """A batch of one rank."""

    batch: PackedBatch
    counts: bool
    """False of a batch that another rank has too: all ranks compute equally many."""


def held_out_batches(
    dataset: VideoDataset,
    *,
    max_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    max_failed_share: float = MAX_FAILED_SHARE,
) -> Iterator[HeldOut]:
    """Every sample of a validation manifest once, the same batches at every call.

    Workers and the process that reads videos end with the iterator, also where it is left early.

    Args:
        dataset: of the manifest.
        max_tokens: most tokens of a batch.
        rank: of this process.
        world_size: ranks there are.
        num_workers: processes that read; 0 reads in this one.
        max_failed_share: share of the samples read that may fail; others are read in their place.

    Raises:
        DataError: more samples than that cannot be read.
        UsageError: as for `PackedLoader`.
    """
    loader = PackedLoader(
        dataset,
        max_tokens=max_tokens,
        rank=rank,
        world_size=world_size,
        num_workers=num_workers,
        max_failed_share=max_failed_share,
    )
    numbers = range(rank, len(loader) * world_size, world_size)
    num_packs = len(loader.sampler.packing.packs)
    try:
        for number, batch in zip(numbers, loader, strict=True):
            yield HeldOut(batch, counts=number < num_packs)
    finally:
        dataset.close()
