"""What was recorded for one answer, as times of what no preference would give, bar by bar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from videonsa.analysis.inspection import Inspection, groups

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Series:
    """One statistic of each layer and bar; NaN where it says nothing."""

    seen: Floats
    """`[layers, bars]`: what was recorded."""
    uniform: Floats
    """`[layers, bars]`: what no preference would give."""
    times: Floats
    """`[layers, bars]`: how many times the uniform, 1 where nothing is preferred."""
    telling: int
    """Layers whose mean tells: the first so many."""

    @property
    def mean(self) -> Floats:
        """`[bars]`: of the times, over the layers that tell."""
        return mean_of(self.times[: self.telling])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bars:
    """Consecutive frames as bars."""

    frames: list[range]
    """Of each bar."""
    attention: Series
    """Of the answer's tokens: of what goes to the video, how much goes to a bar."""
    selection: Series | None
    gates: Floats | None
    """`[layers, bars, 3]`."""

    @classmethod
    def of(cls, inspection: Inspection, *, most: int | None = None) -> Self:
        """The frames in at most so many bars; None: each by itself."""
        count = len(inspection.frames)
        return cls.of_groups(inspection, groups(count, count if most is None else most))

    @classmethod
    def of_groups(cls, inspection: Inspection, parts: Sequence[Sequence[int]]) -> Self:
        """Any frames as a bar each."""
        selection = inspection.selection
        tokens = np.array([one.tokens for one in inspection.frames], dtype=float)
        gates = None
        if inspection.gates is not None:
            given = np.array(inspection.gates, dtype=float)  # [layers, F, 3]
            weighed = _sums((given * tokens[:, None]).swapaxes(1, 2), parts)
            gates = _divided(weighed, _sums(tokens[None, None], parts)).swapaxes(1, 2)
        return cls(
            frames=[range(part[0], part[-1] + 1) for part in parts],
            attention=_attention(inspection, parts),
            selection=None
            if selection is None
            else _selected(
                np.array(selection.frequency),
                np.array(selection.uniform),
                np.array(selection.later_tokens, dtype=float),
                parts,
            ),
            gates=gates,
        )


def mean_of(rows: Floats) -> Floats:
    """Down the columns, without NaN; NaN where there is nothing else."""
    known = ~np.isnan(rows)
    return _divided(np.where(known, rows, 0).sum(0), known.sum(0).astype(float))


def _attention(inspection: Inspection, parts: Sequence[Sequence[int]]) -> Series:
    """Shares of the attention that goes to the video."""
    seen, even = (_sums(np.array(x), parts) for x in (inspection.attention, inspection.even))
    to_video, even_video = (
        np.array(x).sum(1, keepdims=True) for x in (inspection.attention, inspection.even)
    )
    seen, even = _divided(seen, to_video), _divided(even, even_video)
    times = _divided(seen, even)
    return Series(seen=seen, uniform=even, times=times, telling=len(seen))


def _selected(
    frequency: Floats, uniform: Floats, later: Floats, parts: Sequence[Sequence[int]]
) -> Series:
    """Means over the (token, KV head) pairs of the frames of a bar.

    What vision tokens select in the last layer goes into outputs that nothing reads.
    """
    pairs = _sums(later[None], parts)
    seen, expected = (_divided(_sums(rows * later, parts), pairs) for rows in (frequency, uniform))
    times = _divided(seen, expected)
    return Series(seen=seen, uniform=expected, times=times, telling=max(1, len(times) - 1))


def _sums(rows: Floats, parts: Sequence[Sequence[int]]) -> Floats:
    """`[..., F]` -> `[..., bars]`."""
    return np.stack([rows[..., list(part)].sum(-1) for part in parts], axis=-1)


def _divided(above: Floats, below: Floats) -> Floats:
    """NaN where there is nothing below."""
    whole = np.broadcast_to(below, np.broadcast_shapes(above.shape, below.shape))
    out = np.full(whole.shape, np.nan)
    np.divide(above, whole, out=out, where=whole > 0)
    return out
