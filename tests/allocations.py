"""Counts the bytes that live tensors hold while code runs, with real or with fake tensors.

A model of fake tensors runs its own code at published sizes in no time and no memory, so that a
prediction can be held against what the code allocates. The rows of a prompt are real: the model
looks at them. Fused attention, norms, products and rotations are taken as a GPU runs them: their
outputs, and nothing beside.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import videonsa.ops.triton.attention  # noqa: F401 (registers the op)
from videonsa.models import fused
from videonsa.ops.triton import dense
from videonsa.ops.triton.memory import AttentionShape, kernel_bytes
from videonsa.ops.triton.tuning import hopper


class Allocations(TorchDispatchMode):
    """Live and peak bytes of the tensors that are born inside."""

    def __init__(self, kind: type[Tensor]) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._kind = kind
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        given = {x.untyped_storage()._cdata for x in inputs}
        if func is torch.ops.videonsa.nsa.default:
            self.peak = max(self.peak, self.live + _inside(*args))
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, self._kind):
                self._enter(x.untyped_storage(), given)
        return out

    def _enter(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._known or key in given:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.live -= self._known.pop(key)


def _inside(q: Tensor, k: Tensor, *rest: Any) -> int:
    """What the kernels take on a GPU: they run nowhere here."""
    bounds, counts = rest[3], rest[5]
    shape = AttentionShape(
        num_rows=q.shape[0],
        num_keys=k.shape[0],
        num_blocks=bounds[0],
        num_selected=counts[0],
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[2],
        value_bytes=q.element_size(),
    )
    return kernel_bytes(shape, hopper(bounds[1]))


class _Fused(TorchFunctionMode):
    """Attention of fake tensors gives its output alone, laid out as the fused kernels do."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and isinstance(args[0], FakeTensor):
            return torch.empty_like(args[0].transpose(1, 2).contiguous()).transpose(1, 2)
        return func(*args, **(kwargs or {}))


class _Norm:
    @staticmethod
    def apply(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x.contiguous())


class _Product:
    @staticmethod
    def apply(gate: Tensor, up: Tensor) -> Tensor:
        return torch.empty_like(gate)


class _Rope:
    @staticmethod
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
        return q, k


def _kernels_of_a_gpu(*tensors: Tensor) -> Any:
    return fused._Kernels(_Norm, _Product, _Rope) if isinstance(tensors[0], FakeTensor) else None


@contextmanager
def allocations(kind: type[Tensor] = FakeTensor) -> Iterator[Allocations]:
    """Counts tensors of a kind."""
    with (
        torch.inference_mode(),
        mock.patch.object(fused, "_kernels_for", _kernels_of_a_gpu),
        mock.patch.object(torch.cuda, "device", lambda _: nullcontext()),
        mock.patch.object(dense, "dense_rows_in_parts", lambda q, *_: torch.empty_like(q)),
        _Fused(),
        Allocations(kind) as counted,
    ):
        yield counted
