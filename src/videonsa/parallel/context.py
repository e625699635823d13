"""Context parallelism: K and V are all-gathered, queries stay sharded; with gradients."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from videonsa.parallel.shard import SequenceShard, zigzag_shard


class ContextParallelGroup:
    """The processes that share one sequence.

    Keys and values are all-gathered, queries stay sharded: under grouped queries keys are small
    (2 KB a token and layer in the 7B model), and no number of heads limits the number of processes.
    Every process computes with its own rows; a sum over the group of the gradients of a parameter
    is the gradient of the one loss.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """None is the group of all processes."""
        self._group = group or cast(dist.ProcessGroup, dist.group.WORLD)
        self.world_size = dist.get_world_size(self._group)
        self.rank = dist.get_rank(self._group)

    def shard(self, bounds: Sequence[int]) -> SequenceShard:
        """The rows of this process; `bounds` as for `zigzag_shard`."""
        return zigzag_shard(bounds, world_size=self.world_size, rank=self.rank)

    def gather(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows `[n, ...]` of all processes behind one another, `[sum(counts), ...]`.

        Args:
            x: those of this process.
            counts: rows of each process.
        """
        gathered: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            x, tuple(counts), self._group, self.rank
        )
        return gathered

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes; its gradient is that of the own summand."""
        total: Tensor = _Sum.apply(x, self._group)  # type: ignore[no-untyped-call]
        return total


class _Gather(torch.autograd.Function):
    """All rows forward; backward, the sum of what all processes send to one's own rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, counts: tuple[int, ...], group: dist.ProcessGroup, rank: int
    ) -> Tensor:
        ctx.counts, ctx.group, ctx.rank = counts, group, rank
        most = max(counts)
        own = x.new_zeros(most, *x.shape[1:])
        own[: len(x)] = x
        padded = x.new_empty(len(counts) * most, *x.shape[1:])
        dist.all_gather_into_tensor(padded, own, group=group)
        parts = padded.unflatten(0, (len(counts), most))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        counts, most = ctx.counts, max(ctx.counts)
        padded = grads[0].new_zeros(len(counts), most, *grads[0].shape[1:])
        for part, grad, count in zip(padded, grads[0].split(counts), counts, strict=True):
            part[:count] = grad
        own = padded.new_empty(most, *padded.shape[2:])
        dist.reduce_scatter_tensor(own, padded.flatten(0, 1), group=ctx.group)
        return own[: counts[ctx.rank]], None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None
