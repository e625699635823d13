"""The inputs of a shape in the two regimes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from videonsa.bench.attention_shapes import Shape

Regime: TypeAlias = Literal["random", "coherent"]
REGIMES: tuple[Regime, ...] = ("random", "coherent")

COHERENT_NOISE = 0.1
"""Standard deviation of what tells the queries of a frame apart."""


class Inputs(NamedTuple):
    """What one call of an op takes; B = 1."""

    q: Tensor  # [1, T, HQ, D]
    k: Tensor  # [1, T, H, D]
    v: Tensor  # [1, T, H, D]
    gates: Tensor  # [1, T, HQ, 3]


def make_inputs(
    shape: Shape, regimes: Sequence[Regime], *, device: torch.device, seed: int = 0
) -> dict[Regime, Inputs]:
    """Inputs of a shape in its dtype, made on the device; k, v and gates are shared.

    random: q, k, v iid normal. coherent: one normal q for each (frame, query head), a frame being a
    block, plus normal noise of 0.1 for each token; k, v iid normal. Gates are uniform in both.

    Args:
        shape: what to make.
        regimes: any of "random" and "coherent".
        device: where.
        seed: the same seed gives the same tensors on the same kind of device.
    """
    dtype = getattr(torch, shape.dtype)
    shared = torch.Generator(device).manual_seed(seed)
    key_size = (1, shape.tokens, shape.kv_heads, shape.head_dim)
    k = torch.randn(key_size, generator=shared, dtype=dtype, device=device)
    v = torch.randn(key_size, generator=shared, dtype=dtype, device=device)
    gate_size = (1, shape.tokens, shape.query_heads, 3)
    gates = torch.rand(gate_size, generator=shared, dtype=dtype, device=device)
    return {
        regime: Inputs(_queries(shape, regime, device=device, seed=seed + 1), k, v, gates)
        for regime in regimes
    }


def make_grad_output(size: Sequence[int], *, like: Tensor, seed: int = 2) -> Tensor:
    """The gradient of an output: iid normal, in the dtype and on the device of `like`."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)


def _queries(shape: Shape, regime: Regime, *, device: torch.device, seed: int) -> Tensor:
    dtype = getattr(torch, shape.dtype)
    generator = torch.Generator(device).manual_seed(seed)
    heads = (shape.query_heads, shape.head_dim)
    q = torch.randn((1, shape.tokens, *heads), generator=generator, dtype=dtype, device=device)
    if regime == "random":
        return q
    num_frames = -(-shape.tokens // shape.block_tokens)
    frame = torch.randn((1, num_frames, *heads), generator=generator, dtype=dtype, device=device)
    of_token = frame.repeat_interleave(shape.block_tokens, dim=1)[:, : shape.tokens]
    return q.mul_(COHERENT_NOISE).add_(of_token)
