"""`GrowingRows`: rows in memory with room behind them, so that more are written without a copy."""

from typing import Self
from weakref import WeakSet

import torch
from torch import Tensor

ROOM = 256
"""Rows that memory has room for behind those it holds or is told to expect: so many tokens are
decoded without a copy of those before."""


class GrowingRows:
    """Rows `[B, S, ...]` to which more are appended.

    A fork sees the same rows; the memory stays with the one it was made of, which writes over no
    row that a fork still sees.
    """

    def __init__(self, rows: Tensor) -> None:
        """Begin with these rows, which stay where they are; `[0, 0, ...]` is none."""
        self.rows = rows
        self._memory: Tensor | None = None  # [B, M, ...], of which the rows are the first S
        self._forks: WeakSet[GrowingRows] = WeakSet()  # those that see rows of the same memory

    @classmethod
    def within(cls, memory: Tensor, num_rows: int) -> Self:
        """The first rows of memory `[B, M, ...]`, to grow in it."""
        held = cls(memory[:, :num_rows])
        held._memory = memory
        return held

    @property
    def memory(self) -> Tensor:
        """`[B, M, ...]`: the rows, and what room there is behind them."""
        return self.rows if self._memory is None else self._memory

    def append(self, new: Tensor, *, expected: int = 0) -> Tensor:
        """Rows `[B, T, ...]` behind these; gives all. `expected` come in all, as far as known."""
        start, end = self._count, self._count + new.shape[1]
        if torch.is_grad_enabled():  # a graph may keep the rows held: they must not change
            self._move(torch.cat([self.rows, new], dim=1) if start else new)
            return self.rows
        if not self._may_write(end):
            self._take_memory(new, max(end, expected) + ROOM)
        self.memory[:, start:end] = new
        self.rows = self.memory[:, :end]
        return self.rows

    def reserve(self, size: int, *, spare: int = 0) -> None:
        """Have memory for `size` rows, which may be written from the last row on.

        Where memory has to be taken for it, it has room for `spare` rows more.
        """
        if not self._may_write(size):
            self._take_memory(self.rows, size + spare)

    def advance(self, num_new: int) -> None:
        """Count rows that others wrote into the memory, behind those so far."""
        end = self._count + num_new
        assert end <= self.memory.shape[1], "rows are written into memory that was reserved"
        self.rows = self.memory[:, :end]

    def crop(self, num_rows: int) -> None:
        """Keep the first rows only; their memory is written again where no fork sees it."""
        if num_rows < self._count:
            self.rows = self.rows[:, :num_rows]

    def remove(self, start: int, stop: int) -> None:
        """Forget the rows [start, stop); the others move to memory of their own."""
        memory = torch.empty_like(self.memory)
        left = self._count - (stop - start)
        memory[:, :start] = self.rows[:, :start]
        memory[:, start:left] = self.rows[:, stop:]
        self._move(memory[:, :left], memory)

    def fork(self) -> Self:
        """The same rows, and memory of its own as soon as it grows."""
        twin = type(self)(self.rows)
        twin._forks = self._forks
        twin._forks.add(twin)
        return twin

    @property
    def _count(self) -> int:
        return self.rows.shape[1] if len(self.rows) else 0

    def _may_write(self, end: int) -> bool:
        """Whether the memory is ours from the last row up to row `end`."""
        memory = self._memory
        if memory is None or end > memory.shape[1]:
            return False
        writable = torch.is_inference_mode_enabled() or not memory.is_inference()
        return writable and all(fork._count <= self._count for fork in self._forks)

    def _take_memory(self, like: Tensor, size: int) -> None:
        """New memory for `size` rows, with those so far copied into it."""
        memory = like.new_empty(len(like), size, *like.shape[2:])
        if self._count:
            memory[:, : self._count] = self.rows
        self._move(memory[:, : self._count], memory)

    def _move(self, rows: Tensor, memory: Tensor | None = None) -> None:
        """Hold rows that no fork sees."""
        self._forks.discard(self)
        self._forks = WeakSet()
        self.rows, self._memory = rows, memory
