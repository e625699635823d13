"""The ops that are measured, by name: what each is, how it is called, what it needs."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import torch

from videonsa.bench.attention_inputs import Inputs
from videonsa.bench.attention_shapes import Shape
from videonsa.bench.measure import Status
from videonsa.bench.op_calls import Prepared, Scope, prepare_dense, prepare_fla, prepare_videonsa
from videonsa.errors import UsageError

T = TypeVar("T")

BASELINE = "sdpa-cudnn"
"""The op that the times of all others are divided by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """One way to attend."""

    name: str
    what: str
    prepare: Callable[[Inputs, Shape], Prepared]
    """Makes all ready that is not timed. Raises ValueError for a shape that the op refuses."""
    scope: Scope | None = None
    """Selection scope of an op of this package, which is verified first; None for a competitor."""
    sparse: bool = True
    """False: its time depends on no regime, so it runs once a shape."""
    packages: tuple[tuple[str, str], ...] = ()
    """Modules it needs beside PyTorch, each with the distribution that holds it."""
    needs_gpu: bool = False


OPS = MappingProxyType(
    {
        op.name: op
        for op in (
            Op(
                name="videonsa",
                what="nsa_attention, pooling to gated sum; every row its own selection",
                prepare=partial(prepare_videonsa, scope="token"),
                scope="token",
            ),
            Op(
                name="videonsa-block",
                what="nsa_attention with selection_scope='block'",
                prepare=partial(prepare_videonsa, scope="block"),
                scope="block",
            ),
            Op(
                name=BASELINE,
                what="dense causal attention, PyTorch's cuDNN backend",
                prepare=partial(prepare_dense, backend="cudnn"),
                sparse=False,
                needs_gpu=True,
            ),
            Op(
                name="sdpa-flash",
                what="dense causal attention, PyTorch's flash backend",
                prepare=partial(prepare_dense, backend="flash"),
                sparse=False,
            ),
            Op(
                name="fla-nsa",
                what="parallel_nsa of flash-linear-attention, heads padded, no window branch",
                prepare=prepare_fla,
                packages=(("fla", "fla-core"), ("einops", "einops"), ("triton", "triton")),
                needs_gpu=True,
            ),
        )
    }
)
"""Every op by name."""


def hindrance(op: Op, device: torch.device) -> tuple[Status, str] | None:
    """Why an op cannot run here, as (status, line), or None."""
    if op.needs_gpu and device.type != "cuda":
        return "needs a GPU", f"{op.name} needs a CUDA GPU, this is {device}"
    missing = [name for module, name in op.packages if not _installed(module)]
    if missing:
        return "not installed", f"{' '.join(missing)} not found: pip install {' '.join(missing)}"
    return None


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def pick(names: Iterable[str], known: Mapping[str, T], what: str) -> tuple[T, ...]:
    """The entries of these names, in order, each once.

    Raises:
        UsageError: a name that is not there, or no name at all.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        came = ", ".join(unknown) or "nothing"
        raise UsageError(f"--{what} {came}: want some of {','.join(known)}")
    return tuple(known[name] for name in wanted)
