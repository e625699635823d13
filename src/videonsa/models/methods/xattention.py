"""XAttention: each head attends to blocks of keys that sums of antidiagonals choose."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall
from videonsa.models.methods.block_prefill import BlockPrefill
from videonsa.ops.block_lists import BlockLists
from videonsa.ops.estimators.xattention import xattention_lists

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention


@dataclass(frozen=True)
class XAttention(BlockPrefill):
    """The blocks of each row that hold a share of its attention, by sums of antidiagonals.

    The defaults are the authors' for Qwen2-VL on videos. That evaluation of theirs also left the
    first three layers dense, which the method does not: `dense_layers=3`.
    """

    name = "xattention"

    stride: int = 16
    """Side of the tiles of scores of which one antidiagonal each is summed; a power of two."""
    threshold: float = 0.9
    """Share of its attention, so estimated, that a row of blocks keeps; 1: everything."""
    dense_layers: int = 0
    """First layers that attend densely."""
    block_size: int = 128
    """Tokens of a block of queries, and of a block of keys."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        self._check_share("threshold", self.threshold)
        self._check_block_size()
        if self.stride < 1 or self.block_size % self.stride:
            raise UsageError(f"stride={self.stride}: want a power of two, up to {self.block_size}")
        if self.dense_layers < 0:
            raise UsageError(f"dense_layers={self.dense_layers}: want 0 or more")

    def choose(self, layer: "HybridAttention", q: Tensor, k: Tensor) -> BlockLists | None:
        """See `SparsePrefill`."""
        if layer.layer_idx < self.dense_layers:
            return None
        return xattention_lists(
            q, k, stride=self.stride, threshold=self.threshold, block_size=self.block_size
        )

    def is_dense(self, call: AttentionCall) -> bool:
        """See `SparsePrefill`."""
        return self.threshold == 1

    def notes(self, num_layers: int, num_heads: int) -> tuple[str, ...]:
        """See `AttentionMethod`."""
        if self.dense_layers < num_layers:
            return ()
        told = f"dense_layers={self.dense_layers} are all {num_layers} layers"
        return (f"xattention: {told}, so attention is dense",)
