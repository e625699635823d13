"""`ComputedPairs`: how many query-key pairs filled a cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from videonsa.models.methods.pairs import causal_pairs


@dataclass(slots=True)
class _Run:
    """Rows that went through the layers together."""

    end: int
    """Rows of the first layer up to and with the last of them."""
    on_host: float = 0.0
    on_device: dict[torch.device, Tensor] = field(default_factory=dict)

    def add(self, pairs: float | Tensor) -> None:
        if not isinstance(pairs, Tensor):
            self.on_host += pairs
        elif pairs.device in self.on_device:
            self.on_device[pairs.device] = self.on_device[pairs.device] + pairs
        else:
            self.on_device[pairs.device] = pairs

    def scaled(self, end: int, share: float) -> "_Run":
        on_device = {device: pairs * share for device, pairs in self.on_device.items()}
        return _Run(end, self.on_host * share, on_device)

    def total(self) -> float:
        return self.on_host + sum(float(pairs) for pairs in self.on_device.values())


class ComputedPairs:
    """Pairs by the rows whose queries they are: of one query head on average, in all layers.

    Sums stay on their devices until they are asked for. Where rows that went through the layers
    together are cut, the pairs are divided as dense attention would have them, which it is in text.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    @classmethod
    def of(cls, stated: Sequence[tuple[int, float]]) -> Self:
        """From what `stated` gave."""
        found = cls()
        found._runs = [_Run(end, pairs) for end, pairs in stated]
        return found

    def stated(self) -> tuple[tuple[int, float], ...]:
        """Of each run, its last row counted from 1, and its pairs; waits for the devices."""
        return tuple((run.end, run.total()) for run in self._runs)

    def add(self, num_rows: int, pairs: float | Tensor) -> None:
        """Count pairs of one layer, of the last of `num_rows` rows."""
        if not self._runs or self._runs[-1].end != num_rows:
            self._runs.append(_Run(num_rows))
        self._runs[-1].add(pairs)

    def keep(self, num_rows: int) -> None:
        """Forget the pairs of all but the first rows."""
        begins = [0, *(run.end for run in self._runs)]
        kept = [run for run in self._runs if run.end <= num_rows]
        if len(kept) < len(self._runs) and begins[len(kept)] < num_rows:
            begin, cut = begins[len(kept)], self._runs[len(kept)]
            share = (causal_pairs(num_rows) - causal_pairs(begin)) / (
                causal_pairs(cut.end) - causal_pairs(begin)
            )
            kept.append(cut.scaled(num_rows, share))
        self._runs = kept

    def fork(self) -> Self:
        """A count that goes on by itself."""
        twin = type(self)()
        twin._runs = list(self._runs)
        return twin

    def total(self) -> float:
        """Of all rows; waits for the devices."""
        return sum(run.total() for run in self._runs)
