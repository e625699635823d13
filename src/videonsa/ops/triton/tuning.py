"""Tile shapes of the kernels, as data: chosen by measurement, never searched at run time."""

from typing import NamedTuple

import torch
import triton

MAX_TILE_ROWS = 32
"""Rows of a tile of the selected branch: each has a bit in an int32."""


class Config(NamedTuple):
    """Launch parameters of one kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"
    maxnreg: int | None = None
    tma: bool = False
    halves: bool = True
    programs: int = 0
    """Programs on each multiprocessor, for kernels that loop over their work."""


class Tuning(NamedTuple):
    """All that decides how, and not what, the kernels compute."""

    compressed: Config
    importance: Config
    selected: Config
    partial: Config
    window: Config
    min_shared: int
    """Rows of a tile that must have chosen a block for the tile to walk it together."""
    score_bytes: int
    """Buffer for the importance of one chunk of rows."""
    partial_bytes: int
    """Buffer for the partial outputs of one chunk of rows."""


def selected_tile(group: int, lines: int) -> int:
    """Rows of a tile of the selected branch: a power of two whose heads fill at most `lines`."""
    return min(MAX_TILE_ROWS, 1 << ((lines // group).bit_length() - 1))


def tuning_for(group: int, max_size: int, *, device: torch.device) -> Tuning:
    """The measured choice for a group of query heads and blocks of at most `max_size` tokens."""
    block = max(16, triton.next_power_of_2(max_size))
    if device.type == "cpu":  # the interpreter: small tiles, and several chunks in small tests
        return Tuning(
            compressed=Config(32, 16, 4, 1),
            importance=Config(32, 32, 4, 1),
            selected=Config(64, block, 4, 1),
            partial=Config(64, block, 4, 1, programs=1),
            window=Config(32, 32, 4, 1),
            min_shared=4,
            score_bytes=2**18,
            partial_bytes=2**20,
        )
    return Tuning(
        compressed=Config(128, 64, 8, 2, maxnreg=128, tma=True),
        importance=Config(128, 64, 8, 3),
        selected=Config(128, block, 8, 2, maxnreg=128, tma=True),
        partial=Config(64, block, 4, 1, programs=3),
        window=Config(64, 64, 4, 3, tma=True),
        min_shared=4,
        score_bytes=2**28,
        partial_bytes=2**30,
    )
