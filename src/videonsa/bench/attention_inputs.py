"""The inputs of a shape in its regimes: how much neighbouring tokens have in common."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from videonsa.bench.attention_shapes import Shape
from videonsa.errors import UsageError
from videonsa.models.recorder.unions import mean_union, union_bounds
from videonsa.ops import NSAResult, NSASpec, nsa_attention

Regime: TypeAlias = Literal["random", "coherent", "measured"]
REGIMES: tuple[Regime, ...] = ("random", "coherent")
MEASURED: Regime = "measured"
"""Of attention alone, where a selection can be looked at while its inputs are made."""
MEASURED_DISORDER = 0.35
"""Of the embedded model on 16 clips (`models.recorder.unions.SelectionUnions`): 0 is agreement of
16 neighbours, 1 is chance."""
_NEAR = 0.05
"""How far from it a shape's may be."""
_LEAST_NOISE, _MOST_NOISE, _HALVINGS = 1e-2, 1e2, 10

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
    block, plus normal noise of 0.1 for each token; k, v iid normal. measured: the same, scaled to
    unit variance, with the noise for which unions of 16 tokens have `MEASURED_DISORDER`. Gates are
    uniform in all.

    Args:
        shape: what to make.
        regimes: any of "random", "coherent" and "measured".
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
    made: dict[Regime, Inputs] = {}
    for regime in regimes:
        if regime == MEASURED:
            made[regime] = _measured(shape, k, v, gates, seed=seed + 1)
        else:
            q = _queries(shape, regime, device=device, seed=seed + 1)
            made[regime] = Inputs(q, k, v, gates)
    return made


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
    return q.mul_(COHERENT_NOISE).add_(_of_frames(shape, generator, like=q))


def _of_frames(shape: Shape, generator: torch.Generator, *, like: Tensor) -> Tensor:
    """One normal query for each frame and head, for each of its tokens."""
    num_frames = -(-shape.tokens // shape.block_tokens)
    size = (1, num_frames, *like.shape[2:])
    frame = torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)
    return frame.repeat_interleave(shape.block_tokens, dim=1)[:, : shape.tokens]


def _measured(shape: Shape, k: Tensor, v: Tensor, gates: Tensor, *, seed: int) -> Inputs:
    """Halves the interval of the noise until selections have the measured disorder.

    Raises:
        UsageError: no noise gives it in this shape.
    """
    generator = torch.Generator(k.device).manual_seed(seed)
    size = (1, shape.tokens, shape.query_heads, shape.head_dim)
    own = torch.randn(size, generator=generator, dtype=k.dtype, device=k.device)
    common = _of_frames(shape, generator, like=own)
    low, high = _LEAST_NOISE, _MOST_NOISE
    for _ in range(_HALVINGS):
        noise = (low * high) ** 0.5
        inputs = Inputs((common + noise * own).mul_((1 + noise**2) ** -0.5), k, v, gates)
        reached = disorder(inputs, shape)
        if reached < MEASURED_DISORDER:
            low = noise
        else:
            high = noise
    if abs(reached - MEASURED_DISORDER) > _NEAR:
        raise UsageError(
            f"regime 'measured' of shape {shape.name}: unions of 16 tokens come to a disorder of "
            f"{reached:.2f}, want {MEASURED_DISORDER}; take 'random' and 'coherent' there"
        )
    return inputs


@torch.no_grad()
def disorder(inputs: Inputs, shape: Shape) -> float:
    """Of the unions of 16 tokens, where each selects for itself: see `Bounds.disorder`."""
    spec = NSASpec(
        block_size=shape.block_size,
        num_selected_blocks=shape.num_selected,
        window_size=shape.window,
    )
    result = nsa_attention(*inputs, spec=spec, frame_sizes=shape.frame_sizes, return_branches=True)
    assert isinstance(result, NSAResult), "branches were asked for"
    selected = result.selected_blocks
    current = selected[0].amax((1, 2)).long()
    bounds = union_bounds(current, num_selected=shape.num_selected)
    return bounds.disorder(mean_union(selected))
