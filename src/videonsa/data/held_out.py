"""The packed batches of a validation manifest: always the same, each counted once."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
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
    most_samples: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    max_failed_share: float = MAX_FAILED_SHARE,
    always_vision: bool = False,
) -> Iterator[HeldOut]:
    """The samples of a validation manifest once each, the same batches at every call.

    Workers and the process that reads videos end with the iterator, also where it is left early.

    Args:
        dataset: of the manifest.
        max_tokens: most tokens of a batch.
        most_samples: as many batches as have no more, at least one; None: all samples.
        rank: of this process.
        world_size: ranks there are.
        num_workers: processes that read; 0 reads in this one.
        max_failed_share: share of the samples read that may fail; others are read in their place.
        always_vision: as for `PackedLoader`.

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
        always_vision=always_vision,
    )
    packs = loader.sampler.packing.packs
    num_packs = len(packs)
    if most_samples is not None:
        num_packs = max(bisect_right(list(accumulate(map(len, packs))), most_samples), 1)
    numbers = range(rank, rank + -(-num_packs // world_size) * world_size, world_size)
    try:
        for number, batch in zip(numbers, loader, strict=False):
            yield HeldOut(batch, counts=number < num_packs)
    finally:
        dataset.close()
