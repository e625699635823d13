"""Packed batches from workers: resumable, in a fixed order even when files hang or break."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator
from torch.utils.data import DataLoader, Dataset, get_worker_info

from videonsa.data.collate import PackedBatch, pack_batch
from videonsa.data.dataset import Failure, Sample, VideoDataset
from videonsa.data.draws import Draws
from videonsa.data.media import name_of
from videonsa.data.sampler import Pack, PackSampler
from videonsa.data.shapes import PackShape, Shapes
from videonsa.errors import DataError, UsageError

MAX_FAILED_SHARE = 0.02
"""Share of the samples read that may fail before the run stops."""
FEWEST_READS = 100
"""Until this many are read (or all, if fewer), the share is taken of this number."""
MOST_TRIES = 8
"""Samples that are tried as replacements of one that cannot be read."""
WORST_FILES = 5

_logger = logging.getLogger(__name__)


class _Read(NamedTuple):
    """What a worker made of a pack."""

    batch: PackedBatch | None
    """None if no sample could be read, nor any replacement."""
    num_reads: int
    failures: tuple[Failure, ...]


@dataclass(eq=False)
class _Packs(Dataset[_Read]):
    """Packs to batches; this goes to the workers."""

    dataset: VideoDataset
    seed: int
    max_tokens: int
    shapes: Shapes | None
    pad_id: int
    always_vision: bool
    prepare: Callable[[PackedBatch], Any] | None

    def __getitem__(self, pack: Pack) -> _Read:
        """Read a pack, replacing samples that cannot be read."""
        shape = self.shapes.of(pack.samples[0]) if self.shapes else None
        lengths = self.dataset.lengths
        taken = list(pack.samples)
        samples: list[Sample] = []
        failures: list[Failure] = []
        num_reads = 0
        for slot, index in enumerate(pack.samples):
            room = self.max_tokens - sum(int(lengths[i]) for i in taken) + int(lengths[index])
            for candidate in self._candidates(pack.epoch, index, room=room, taken=taken):
                num_reads += 1
                result = self._of_shape(self.dataset[candidate], shape)
                if isinstance(result, Sample):
                    samples.append(result)
                    taken[slot] = candidate
                    break
                failures.append(result)
        if not samples:
            return _Read(None, num_reads, tuple(failures))
        if shape is not None:  # always as many, though nothing may be left in the place of some
            samples = list(islice(cycle(samples), shape.samples))
        shows = any(each.videos or each.images for each in samples)
        blank = self.dataset.blank() if self.always_vision and not shows else None
        batch = pack_batch(
            samples,
            sampling=self.dataset.sampling,
            shape=shape,
            pad_id=self.pad_id,
            blank=blank,
        )
        if self.prepare is not None:
            batch = replace(batch, prepared=self.prepare(batch))
        return _Read(batch, num_reads, tuple(failures))

    def _of_shape(self, result: Sample | Failure, shape: PackShape | None) -> Sample | Failure:
        """The same; a damaged video that lacks frames, and so has another shape, fails."""
        if shape is None or isinstance(result, Failure) or len(result.videos[0]) == shape.frames:
            return result
        (media,) = self.dataset.manifest[result.index].record.media[:1]
        return Failure(
            index=result.index,
            id=result.id,
            file=name_of(media),
            kind="broken",
            reason=f"{len(result.videos[0])} frames, and its pack is of videos of {shape.frames}",
        )

    def _candidates(
        self, epoch: int, index: int, *, room: int, taken: Sequence[int]
    ) -> Iterator[int]:
        """The sample, then others that fit in its place (of its shape if it has one).

        They are the same for every worker.
        """
        yield index
        if self.shapes is None or self.shapes.of(index) is None:
            fitting = self.dataset.lengths <= room
        else:
            fitting = self.shapes.of_rows == self.shapes.of_rows[index]
        others = sorted(set(fitting.nonzero()[0].tolist()) - set(taken))
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        for _ in range(min(MOST_TRIES, len(others))):
            yield others.pop(int(rng.random() * len(others)))


class PackedLoader:
    """Iterates over the packed batches that are still to come in this epoch, then in the next.

    Order and contents follow from data, seed and epoch alone, whatever the number of workers. A
    sample that cannot be read is logged and counted, and another that fits takes its place, the
    same one every time; the replacement is then seen twice in that epoch.

    A batch that was handed out counts as done: `state_dict` after a step resumes after that step.
    A loop that was left resumes where it stopped.

    Args:
        dataset: the samples.
        max_tokens: most tokens of a packed batch.
        seed: of the order.
        rank: of this process; each counts its own failures.
        world_size: ranks there are.
        num_workers: processes that read; 0 reads in this one.
        prefetch_factor: batches that each worker may have waiting.
        max_failed_share: share of the samples read that may fail.
        batch_size: samples of a step over all ranks (see `PackSampler`). Default: sequences as full
            as can be, in steps of any number.
        weights: how often an epoch has the samples of a source (see `Draws`).
        shapes: `equal` makes packs of samples of one shape (see `Shapes`), padded to the same
            number of tokens.
        always_vision: put a black image behind packs of text alone, which no other sample sees: for
            runs whose ranks all have to use the vision tower in every step.

    Raises:
        UsageError: a share that is none, or what `PackSampler` refuses.
        ModelError: shapes are to be equal, and the tokenizer cannot pad.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        max_tokens: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        max_failed_share: float = MAX_FAILED_SHARE,
        batch_size: int | None = None,
        weights: Mapping[str, float] | None = None,
        shapes: Literal["any", "equal"] = "any",
        always_vision: bool = False,
    ) -> None:
        if not 0 <= max_failed_share <= 1:
            raise UsageError(f"max_failed_share={max_failed_share}: want 0 to 1")
        equal = shapes == "equal"
        self._pad_id = dataset.pad_id if equal else 0
        self._always_vision = always_vision
        self.sampler = PackSampler(
            dataset.lengths.tolist(),
            max_tokens=max_tokens,
            seed=seed,
            data_hash=dataset.manifest.data_hash,
            shapes=Shapes(dataset.manifest, max_tokens=max_tokens) if equal else None,
            batch_size=batch_size,
            draws=(
                Draws(dataset.manifest.sources, weights=weights, seed=seed) if weights else None
            ),
            rank=rank,
            world_size=world_size,
        )
        self.prepare: Callable[[PackedBatch], Any] | None = None
        """Asked in the workers about each batch, which then has what it gave."""
        self.max_failed_share = max_failed_share
        self.num_reads = 0
        """Samples that were tried so far."""
        self.failures: list[Failure] = []
        """Those that could not be read."""
        self._dataset = dataset
        self._workers: dict[str, Any] = {"num_workers": num_workers}
        if num_workers:
            self._workers |= {
                "prefetch_factor": prefetch_factor,
                "worker_init_fn": _begin_worker,
            }

    def __len__(self) -> int:
        """Batches of this rank that are still to come in this epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[PackedBatch]:
        """The batches that are still to come in this epoch.

        Raises:
            DataError: more than `max_failed_share` of the samples read, or a whole pack and all
                that was tried in its place, could not be read.
        """
        sampler = self.sampler
        packing = sampler.packing
        _logger.info(
            "epoch %d: %d samples in %d packs of %d tokens, %.1f %% full, %d done%s",
            *(sampler.epoch, sampler.num_samples, len(packing.packs), sampler.max_tokens),
            *(100 * packing.fill, sampler.packs_done),
            f"; {note}" if (note := sampler.note) else "",
        )
        packs = DataLoader(
            _Packs(
                *(self._dataset, sampler.seed, sampler.max_tokens, sampler.shapes),
                *(self._pad_id, self._always_vision, self.prepare),
            ),
            batch_size=None,
            sampler=sampler,
            collate_fn=_as_it_is,
            # A thread then takes batches out of their pipe while a step computes.
            pin_memory=torch.cuda.is_available(),
            generator=Generator(),  # its seeds are not drawn from the generator of the model
            **self._workers,
        )
        for read in packs:
            self._note(read)
            if read.batch is None:
                raise DataError(
                    f"nothing of a pack could be read, nor of the {MOST_TRIES} samples tried in "
                    f"place of each: {self._worst()}"
                )
            sampler.advance()
            yield read.batch

    def state_dict(self) -> dict[str, Any]:
        """Which samples are done and which failed; JSON can hold it."""
        return {
            "sampler": self.sampler.state_dict(),
            "num_reads": self.num_reads,
            "failures": [asdict(failure) for failure in self.failures],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where the state was taken.

        Raises:
            UsageError: a state of other data, another seed or another length of packs.
        """
        self.sampler.load_state_dict(state["sampler"])
        self.num_reads = state["num_reads"]
        self.failures = [Failure(**failure) for failure in state["failures"]]

    def _note(self, read: _Read) -> None:
        self.num_reads += read.num_reads
        self.failures += read.failures
        for failure in read.failures:
            _logger.warning(
                "sample %s cannot be read: %s %s: %s",
                *(failure.id, failure.file, failure.kind, failure.reason),
            )
        least = min(FEWEST_READS, len(self._dataset))
        if len(self.failures) > self.max_failed_share * max(self.num_reads, least):
            raise DataError(
                f"{len(self.failures)} of {self.num_reads} samples could not be read, more than "
                f"max_failed_share={self.max_failed_share:g}: mend or leave out {self._worst()}"
            )

    def _worst(self) -> str:
        """The files that failed most often, and why the last time."""
        counts = Counter(failure.file for failure in self.failures)
        why = {failure.file: failure for failure in self.failures}
        named = [
            f"{file} ({count} times, {why[file].kind}: {why[file].reason})"
            for file, count in counts.most_common(WORST_FILES)
        ]
        more = len(counts) - len(named)
        return "; ".join(named) + (f"; and {more} more files" if more else "")


def _as_it_is(read: Any) -> Any:
    return read


def _begin_worker(_: int) -> None:
    packs: Any = get_worker_info().dataset  # type: ignore[union-attr]
    packs.dataset = packs.dataset.reopened()
