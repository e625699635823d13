"""Tile shapes of the kernels, as data: chosen by measurement, never searched at run time."""

from typing import NamedTuple

import triton

PAIR_ROWS = 128
"""Lines (rows times heads of a group) of a tile of the selected branch."""
MAX_TILE_ROWS = 32
"""Rows of a tile of the selected branch: each has a bit in an int32."""


class Config(NamedTuple):
    """Launch parameters of one kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"


class Tuning(NamedTuple):
    """All that decides how, and not what, the kernels compute."""

    compressed: Config
    importance: Config
    selected: Config
    partial: Config
    window: Config
    union_max: int
    """A tile whose rows chose more different blocks goes to the scattered kernels."""
    score_bytes: int
    """Buffer for the importance of one chunk of rows."""
    partial_bytes: int
    """Buffer for the partial outputs of one chunk of rows."""
    programs_per_sm: int
    """Programs of the partial kernel on each multiprocessor."""


def selected_tile(group: int) -> int:
    """Rows of a tile of the selected branch: a power of two whose heads fill `PAIR_ROWS` lines."""
    return min(MAX_TILE_ROWS, 1 << ((PAIR_ROWS // group).bit_length() - 1))


def tuning_for(group: int, max_size: int) -> Tuning:
    """The measured choice for a group of query heads and blocks of at most `max_size` tokens."""
    block = max(16, triton.next_power_of_2(max_size))
    lines = triton.next_power_of_2(selected_tile(group) * group)
    return Tuning(
        compressed=Config(128, 64, 8, 3),
        importance=Config(128, 128, 8, 2),
        selected=Config(lines, block, 8, 3),
        partial=Config(PAIR_ROWS, block, 8, 2),
        window=Config(128, 64, 8, 3),
        union_max=64,
        score_bytes=2**28,
        partial_bytes=2**30,
        programs_per_sm=2,
    )
