"""Tile shapes of the kernels of a decode step, as data: chosen by measurement, never searched.

How much must be in flight: memory of 4.26 TB/s with a latency of about a microsecond under load
wants about 40 KB of loads on the way at any time on each of the 132 multiprocessors of an H200.
"""

from typing import NamedTuple

import torch

from videonsa.ops.triton.tuning import Config


class CachedTuning(NamedTuple):
    """Of attention over a cache: `programs` share the keys out on each multiprocessor."""

    splits: Config
    sum_splits: int
    """Splits that a program of the sum reads at a time."""
    sum_dims: int
    """Elements of the head dim that it sums."""
    sum_warps: int


def major_capability(device: torch.device) -> int | None:
    """Of a GPU; None for the interpreter."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None


def cached_tuning(num_rows: int, width: int, *, capability: int | None) -> CachedTuning:
    """The choice for tiles of rows.

    Args:
        num_rows: that read the same keys: tokens times the query heads of a KV head.
        width: bytes of a key of one head.
        capability: major compute capability, None for the interpreter.
    """
    if capability is None:
        return CachedTuning(Config(16, 16, 4, 1, programs=3), 4, 16, 4)
    sums = (128, 32, 4) if num_rows <= 32 else (64, 32, 2)
    block_m = 16 if num_rows <= 16 else 32 if num_rows <= 32 or width > 256 else 64
    if width > 256:  # wide keys, or float32: tiles of as many bytes
        return CachedTuning(Config(block_m, 32 if width <= 512 else 16, 4, 2, programs=2), *sums)
    if capability != 9:
        return CachedTuning(Config(block_m, 64, 4, 2, programs=2), *sums)
    return CachedTuning(_hopper(num_rows), *sums)


def _hopper(num_rows: int) -> Config:
    if num_rows <= 16:
        return Config(16, 64, 4, 3, programs=2)
    if num_rows <= 32:
        return Config(32, 64, 4, 3, tma=True, programs=2)
    if num_rows <= 64:
        return Config(64, 64, 4, 3, maxnreg=168, tma=True, programs=2)
    return Config(128, 64, 8, 4, tma=True, programs=1)


class ProductConfig(NamedTuple):
    """Launch parameters of the products of a few rows."""

    block_m: int
    """Rows of a tile; 1 is multiplied in registers, 16 by tensor cores."""
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    tma: bool = False


def product_tuning(
    num_rows: int, num_out: int, size: int, *, element_size: int = 2, capability: int | None
) -> ProductConfig:
    """The choice for a product.

    Args:
        num_rows: of the input.
        num_out: outputs of all weights that one launch reads.
        size: inner dimension.
        element_size: bytes of an element of the weights.
        capability: major compute capability, None for the interpreter.
    """
    if capability is None:
        return ProductConfig(1 if num_rows == 1 else 16, 16, 32, 4, 1)
    if num_rows == 1:
        return ProductConfig(1, 8 // element_size, 256 if size % 512 else 512, 4, 1)
    if capability != 9:
        return ProductConfig(16, 32, 128, 4, 4)
    if num_out < 2**12:
        return ProductConfig(16, 32, 128, 4, 6)
    return ProductConfig(16, 64, 128, 4, 5, tma=True)
