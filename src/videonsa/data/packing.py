"""Which samples share a sequence: a pure function of lengths, limit, seed and epoch."""

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from videonsa.errors import UsageError

WINDOW = 64
"""Packs whose samples are packed together: many for full packs, few to keep the order shuffled."""


class Packing(NamedTuple):
    """The packs of an epoch in the order of training; samples by their number."""

    packs: tuple[tuple[int, ...], ...]
    num_tokens: int
    """Of all samples in them, without padding."""
    max_tokens: int
    num_repeated: int = 0
    """Samples that stand once more to fill packs or steps of a fixed number of samples."""

    @property
    def fill(self) -> float:
        """Share of the room of all packs that holds tokens; 1 where there is no pack."""
        room = len(self.packs) * self.max_tokens
        return self.num_tokens / room if room else 1.0


def pack_samples(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    seed: int,
    epoch: int = 0,
    drawn: Sequence[int] | None = None,
) -> Packing:
    """Put every sample into one pack of at most `max_tokens` tokens.

    The samples are shuffled and cut into windows of about 64 packs. Within a window the longest go
    first, each into the pack that it fills best; then the packs of all windows are shuffled.

    Args:
        lengths: tokens of each sample.
        max_tokens: most tokens of a pack.
        seed: of the order.
        epoch: each has another order.
        drawn: the samples of the epoch. Default: each once.

    Raises:
        UsageError: samples longer than a pack, or without a token.
    """
    return pack_equal_samples(
        lengths,
        shapes=[-1] * len(lengths),
        sizes=(),
        max_tokens=max_tokens,
        seed=seed,
        epoch=epoch,
        drawn=drawn,
    )


def pack_equal_samples(
    lengths: Sequence[int],
    *,
    shapes: Sequence[int],
    sizes: Sequence[int],
    max_tokens: int,
    seed: int,
    epoch: int = 0,
    drawn: Sequence[int] | None = None,
) -> Packing:
    """Put samples of one shape into packs of the same number of samples.

    The last pack of a shape is filled with the first samples of that shape in this epoch. Samples
    without a shape are packed as `pack_samples` does.

    Args:
        lengths: tokens of each sample.
        shapes: of each sample the number of its shape; -1: it has none.
        sizes: for each shape, the samples of a pack.
        max_tokens: most tokens of a pack.
        seed: of the order.
        epoch: each has another order.
        drawn: the samples of the epoch. Default: each once.

    Raises:
        UsageError: samples longer than a pack, or without a token.
    """
    lengths = [int(length) for length in lengths]
    check_lengths(lengths, max_tokens)
    rng = random.Random(f"{seed}/{epoch}")
    groups: list[list[int]] = [[] for _ in range(len(sizes) + 1)]
    drawn = range(len(lengths)) if drawn is None else drawn
    for place in shuffled(len(drawn), rng):
        groups[shapes[drawn[place]]].append(drawn[place])  # those without a shape: the last
    packs = [
        pack
        for window in _windows(groups.pop(), lengths, WINDOW * max_tokens)
        for pack in _best_fit(window, lengths, max_tokens)
    ]
    for group, size in zip(groups, sizes, strict=True):
        packs += _equal(group, size)
    return Packing(
        packs=tuple(tuple(packs[i]) for i in shuffled(len(packs), rng)),
        num_tokens=sum(lengths[sample] for pack in packs for sample in pack),
        max_tokens=max_tokens,
        num_repeated=sum(map(len, packs)) - len(drawn),
    )


def _equal(group: Sequence[int], size: int) -> list[list[int]]:
    """Packs of `size` samples; the last is filled from the beginning."""
    return [
        [group[place % len(group)] for place in range(first, first + size)]
        for first in range(0, len(group), size)
    ]


def check_lengths(lengths: Sequence[int], max_tokens: int) -> None:
    """Refuse samples longer than a pack, or without a token: UsageError."""
    unfit = [i for i, length in enumerate(lengths) if not 0 < length <= max_tokens]
    if unfit:
        first = unfit[0]
        raise UsageError(
            f"{len(unfit)} samples do not fit into packs of {max_tokens} tokens, such as sample "
            f"{first} with {lengths[first]}: raise the limit, or build the manifest with it"
        )


def shuffled(count: int, rng: random.Random) -> list[int]:
    """Numbers in random order.

    By `random()` alone: Python promises that its numbers stay the same in later versions.
    """
    keys = [rng.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def _windows(order: Sequence[int], lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    window: list[int] = []
    tokens = 0
    for sample in order:
        if window and tokens + lengths[sample] > most_tokens:
            yield window
            window, tokens = [], 0
        window.append(sample)
        tokens += lengths[sample]
    if window:
        yield window


def _best_fit(window: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    packs: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens, pack), ascending
    for sample in sorted(window, key=lambda sample: (-lengths[sample], sample)):
        place = bisect_left(free, (lengths[sample], 0))
        if place == len(free):
            packs.append([])
            room, pack = max_tokens, len(packs) - 1
        else:
            room, pack = free.pop(place)
        packs[pack].append(sample)
        insort(free, (room - lengths[sample], pack))
    return packs
