"""Which samples an epoch has: all of them once, or by the weights of their sources."""

import random
from collections.abc import Mapping, Sequence

from videonsa.data.packing import shuffled
from videonsa.errors import UsageError


class Draws:
    """The samples of each epoch.

    A source of weight 2 is seen twice an epoch, one of weight 0.5 in halves: the epochs go through
    its samples in turn, in an order of their own, so no sample is seen a second time before all
    have been.

    Args:
        sources: of each sample.
        weights: of sources; the others have 1.
        seed: of the order.

    Raises:
        UsageError: a weight of a source that no sample has, or that is not above 0.
    """

    def __init__(self, sources: Sequence[str], *, weights: Mapping[str, float], seed: int) -> None:
        self._rows: dict[str, list[int]] = {}
        for row, source in enumerate(sources):
            self._rows.setdefault(source, []).append(row)
        for source, weight in weights.items():
            if source not in self._rows:
                raise UsageError(
                    f"data.weights has {source!r}: want sources of the manifest, which are "
                    f"{', '.join(sorted(self._rows))}"
                )
            if not 0 < weight <= 1000:
                raise UsageError(f"data.weights.{source}={weight:g}: want above 0, at most 1000")
        for source, rows in self._rows.items():
            order = shuffled(len(rows), random.Random(f"{seed}/{source}"))
            self._rows[source] = [rows[place] for place in order]
        self.weights = dict(weights)

    @property
    def note(self) -> str:
        """How many samples of each weighted source an epoch has, in words."""
        counts = self.counts
        parts = [
            f"{counts[source]} samples of {source} (which has {len(self._rows[source])})"
            for source in sorted(self.weights)
        ]
        return ", ".join(parts)

    @property
    def at_most(self) -> list[int]:
        """Every sample, as often as an epoch may have it."""
        return [
            row
            for source, count in self.counts.items()
            for row in self._rows[source] * -(-count // len(self._rows[source]))
        ]

    @property
    def counts(self) -> dict[str, int]:
        """For each source, how many samples an epoch has of it."""
        return {
            source: max(1, round(self.weights.get(source, 1) * len(rows)))
            for source, rows in self._rows.items()
        }

    def of_epoch(self, epoch: int) -> list[int]:
        """The samples of an epoch, equally many in each."""
        return [
            rows[place % len(rows)]
            for (source, count) in self.counts.items()
            for rows in [self._rows[source]]
            for place in range(epoch * count, (epoch + 1) * count)
        ]
