"""Which rows of a sequence a process has, and which keys these rows may see: pure rules."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from videonsa.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows of one sample that stand together, and their keys: the sample from its begin on."""

    begin: int
    """Where the sample begins."""
    first: int
    """The first row."""
    end: int
    """One past the last row, and past the last key."""

    @property
    def num_rows(self) -> int:
        """Rows of the piece."""
        return self.end - self.first

    @property
    def num_keys(self) -> int:
        """Keys that its last row sees."""
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceShard:
    """What each of the processes that share a sequence has."""

    rank: int
    runs: tuple[tuple[tuple[int, int], ...], ...]
    """For each process, the stretches of rows that it has, in the order in which it has them."""
    pieces: tuple[Piece, ...]
    """Those of this process, in the order of its rows."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each process."""
        return tuple(sum(end - first for first, end in runs) for runs in self.runs)

    @property
    def rows(self) -> list[int]:
        """Positions of the rows of this process."""
        return [row for first, end in self.runs[self.rank] for row in range(first, end)]

    @property
    def keys(self) -> list[int]:
        """Positions of the keys of the pieces, one piece after the other."""
        return [key for piece in self.pieces for key in range(piece.begin, piece.end)]

    @property
    def places(self) -> list[int]:
        """Where the row of each position stands, those of process 0, 1, ... behind one another."""
        order = [row for run in chain.from_iterable(self.runs) for row in range(*run)]
        places = [0] * len(order)
        for place, row in enumerate(order):
            places[row] = place
        return places


def zigzag_shard(bounds: Sequence[int], *, world_size: int, rank: int) -> SequenceShard:
    """Cut the rows into 2 N stretches; process r has number r and number 2 N - 1 - r.

    Rows are shared out evenly, and a later row, which sees more keys, comes with an earlier one:
    causal attention over one long sample costs every process the same.

    Args:
        bounds: where each packed sample begins, and the end: (0, T) for a single one.
        world_size: processes N that share the sequence.
        rank: of this process.

    Raises:
        UsageError: fewer rows than stretches, or bounds that do not rise from 0.
    """
    if bounds[0] != 0 or len(bounds) < 2 or any(end <= begin for begin, end in pairwise(bounds)):
        raise UsageError(
            f"bounds={list(bounds)}: want where each sample begins, from 0, then the end"
        )
    num_rows, num_runs = bounds[-1], 2 * world_size
    if num_rows < num_runs:
        raise UsageError(
            f"{num_rows} rows over {world_size} processes: want at least {num_runs}, two a "
            "process; use fewer processes or longer samples"
        )
    cuts = [num_rows * i // num_runs for i in range(num_runs + 1)]
    runs = list(pairwise(cuts))
    shares = tuple((runs[r], runs[num_runs - 1 - r]) for r in range(world_size))
    pieces = tuple(chain.from_iterable(_pieces(run, bounds) for run in shares[rank]))
    return SequenceShard(rank=rank, runs=shares, pieces=pieces)


def _pieces(run: tuple[int, int], bounds: Sequence[int]) -> Iterator[Piece]:
    """A stretch of rows cut where samples meet."""
    for begin, end in pairwise(bounds):
        first, last = max(run[0], begin), min(run[1], end)
        if first < last:
            yield Piece(begin=begin, first=first, end=last)
