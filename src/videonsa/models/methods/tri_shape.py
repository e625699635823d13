"""Tri-Shape: first keys, a window, and all keys for the last rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall
from videonsa.models.methods.sparse_prefill import SparsePrefill
from videonsa.ops.block_lists import Trim
from videonsa.ops.block_sparse import BlockLists, computed_pairs
from videonsa.ops.estimators.tri_shape import tri_shape_lists

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention


@dataclass(frozen=True)
class TriShape(SparsePrefill):
    """First keys and a window for all rows but the last, which attend to all (SCBench).

    Nothing is estimated. A prompt of up to n_local + n_last tokens is dense.
    """

    name = "tri_shape"

    n_init: int = 128
    """First keys that every row attends to."""
    n_local: int = 3968
    """Last keys that every row attends to, its own among them."""
    n_last: int = 100
    """Last rows, which attend to all keys; a longer question is read in part by the window."""

    def __post_init__(self) -> None:
        """Refuse numbers below 0, and no window: UsageError."""
        if min(self.n_init, self.n_local - 1, self.n_last) < 0:
            raise UsageError(
                f"n_init={self.n_init}, n_local={self.n_local}, n_last={self.n_last}: want at "
                "least 0, 1 and 0"
            )

    def choose(self, layer: "HybridAttention", q: Tensor, k: Tensor) -> BlockLists | None:
        """See `SparsePrefill`; None where the window of every row reaches the first key."""
        num_tokens = len(q)
        if num_tokens - self._num_last(num_tokens) <= self.n_local:
            return None
        return self._lists(num_tokens, q.shape[1], q.device)

    def trim(self, num_tokens: int) -> Trim:
        """See `SparsePrefill`."""
        return Trim(self.n_init, self.n_local, self._num_last(num_tokens))

    def prompt_pairs(self, call: AttentionCall) -> float:
        """See `AttentionMethod`."""
        lists = self._lists(call.prompt_tokens, 1, torch.device("cpu"))
        return float(call.num_layers * computed_pairs(lists, call.prompt_tokens).sum())

    def list_bytes(self, call: AttentionCall) -> int:
        """See `SparsePrefill`; which tiles are listed hangs on the shape alone."""
        lists = self._lists(call.prompt_tokens, 1, torch.device("cpu"))
        return call.num_heads * lists.tiles.nbytes

    def operations(self, call: AttentionCall) -> float:
        """Two products for each pair that is computed."""
        return 4.0 * self.prompt_pairs(call) * call.width

    def _num_last(self, num_tokens: int) -> int:
        return min(self.n_last, num_tokens - 1)

    def _lists(self, num_tokens: int, num_heads: int, device: torch.device) -> BlockLists:
        return tri_shape_lists(
            num_tokens,
            num_heads,
            num_init=self.n_init,
            window=self.n_local,
            num_last=self._num_last(num_tokens),
            device=device,
        )
