"""Tile shapes of the block-sparse kernel, as data: chosen by measurement, never searched."""

from typing import NamedTuple


class SparseConfig(NamedTuple):
    """Launch parameters of attention over block lists."""

    block_n: int
    """Keys of a step; divides the key tile of the lists."""
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    tma: bool = False
    column_n: int = 64
    """Single columns of a step."""
    column_stages: int = 3
    """Of their loop: which columns, and then their rows of K and V."""

    @property
    def launch(self) -> dict[str, int | None]:
        """What of it Triton's launcher takes."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.maxnreg,
        }


def sparse_config(query_tile: int, width: int, *, capability: int | None) -> SparseConfig:
    """The choice for lists of query tiles.

    Args:
        query_tile: their rows.
        width: bytes of a key of one head, as the registers hold it.
        capability: major compute capability, None for the interpreter.
    """
    if capability is None:
        return SparseConfig(64, 4, 1)
    warps = 8 if query_tile == 128 else 4
    if width > 256:  # heads of more than 128: tiles of as many bytes
        stages = 2 if capability == 9 or query_tile == 64 else 1
        return SparseConfig(32, 8, stages, column_n=32, column_stages=stages)
    if capability != 9:
        return SparseConfig(64, warps, 2, column_n=32, column_stages=2)
    # Two programs fit a multiprocessor: of 8 warps with 128 registers, of 4 with as many as there
    # are and one more stage in shared memory.
    if query_tile == 128:
        return SparseConfig(64, 8, 2, maxnreg=128, tma=True)
    return SparseConfig(64, 4, 3, tma=True)
