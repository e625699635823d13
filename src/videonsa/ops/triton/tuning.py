"""Tile shapes of the kernels, as data: chosen by measurement, never searched at run time."""

from typing import NamedTuple

import torch

from videonsa.ops.triton.support import compute_device

MAX_TILE_ROWS = 32
"""Rows of a tile of the selected branch: each has a bit in an int32."""


class Config(NamedTuple):
    """Launch parameters of one kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    tma: bool = False
    programs: int = 0
    """Programs on each multiprocessor, for kernels that loop over their work."""

    @property
    def launch(self) -> dict[str, int | None]:
        """What of it Triton's launcher takes."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.maxnreg,
        }


class Tuning(NamedTuple):
    """All that decides how, and not what, the kernels compute."""

    compressed: Config
    importance: Config
    selected: Config
    partial: Config
    window: Config
    query_gradient: Config
    pair_gradient: Config
    block_gradient: Config
    compressed_gradient: Config
    splits: int
    """Parts of the rows over which gradients of compressed keys are summed: enough programs for a
    GPU, and a buffer that grows with the blocks alone."""
    min_shared: int
    """Rows of a tile that must have chosen a block for the tile to walk it together."""
    score_bytes: int
    """Buffer for the importance of one chunk of rows."""
    partial_bytes: int
    """Buffer for the partial outputs of one chunk of rows, or their partial gradients."""


def rows_of_tile(group: int, block_m: int, *, most: int = MAX_TILE_ROWS) -> int:
    """Tokens of a tile of the selected branch: a power of two whose heads are at most `block_m`."""
    return min(most, 1 << ((block_m // group).bit_length() - 1))


def _block_rows(max_size: int) -> int:
    """The rows of a tile that holds a block: a power of two, as the matrix units want at least."""
    return max(16, 1 << (max_size - 1).bit_length())


def tuning_for(max_size: int, *, device: torch.device) -> Tuning:
    """The choice for blocks of at most `max_size` tokens."""
    device = compute_device(device)
    if device.type != "cuda":
        return interpreter(max_size)
    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    return hopper(max_size) if is_hopper else portable(max_size)


def hopper(max_size: int) -> Tuning:
    """Compute capability 9.0; measured on an H200 (docs/kernels.md)."""
    block = _block_rows(max_size)
    # Two programs of 8 warps fit a multiprocessor with 128 registers; larger blocks need more.
    registers = 128 if block <= 64 else None
    return Tuning(
        compressed=Config(128, 64, 8, 2, maxnreg=128, tma=True),
        importance=Config(64, 128, 4, 2, maxnreg=168, tma=True),
        selected=Config(128, block, 8, 2, maxnreg=registers, tma=True),
        partial=Config(64, block, 4, 3 if block <= 64 else 2, maxnreg=168, programs=3),
        window=Config(64, 32, 4, 3, maxnreg=168, tma=True),
        query_gradient=Config(64, 64, 4, 2, tma=True),
        pair_gradient=Config(64, block, 4, 3 if block <= 64 else 1, programs=2),
        block_gradient=Config(64, 64, 4, 2),
        compressed_gradient=Config(64, 64, 4, 2, tma=True),
        splits=16,
        min_shared=4,
        score_bytes=2**29,
        partial_bytes=2**31,
    )


def portable(max_size: int) -> Tuning:
    """Any other GPU from compute capability 8.0 on: compiles and fits, not measured."""
    block = _block_rows(max_size)
    return Tuning(
        compressed=Config(128, 64, 8, 2),
        importance=Config(128, 64, 8, 2),
        selected=Config(128, block, 8, 2),
        partial=Config(64, block, 4, 1, programs=2),
        window=Config(64, 64, 4, 2),
        query_gradient=Config(64, 64, 4, 1),
        pair_gradient=Config(64, block, 4, 1, programs=2),
        block_gradient=Config(64, 64, 4, 1),
        compressed_gradient=Config(64, 64, 4, 1),
        splits=16,
        min_shared=4,
        score_bytes=2**28,
        partial_bytes=2**30,
    )


def interpreter(max_size: int) -> Tuning:
    """Small tiles, and several chunks in small tests."""
    block = _block_rows(max_size)
    return Tuning(
        compressed=Config(32, 16, 4, 1),
        importance=Config(32, 32, 4, 1),
        selected=Config(64, block, 4, 1),
        partial=Config(64, block, 4, 1, programs=1),
        window=Config(32, 32, 4, 1),
        query_gradient=Config(32, 32, 4, 1),
        pair_gradient=Config(64, block, 4, 1, programs=1),
        block_gradient=Config(32, 32, 4, 1),
        compressed_gradient=Config(32, 32, 4, 1),
        splits=2,
        min_shared=4,
        score_bytes=2**18,
        partial_bytes=2**20,
    )
