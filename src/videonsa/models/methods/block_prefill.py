"""`BlockPrefill`: sparse prefill by maps of whole blocks."""

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall
from videonsa.models.methods.sparse_prefill import SparsePrefill
from videonsa.ops.block_lists import TILE_SIZES
from videonsa.ops.estimators.pooling import estimate_bytes


class BlockPrefill(SparsePrefill):
    """What methods share that choose whole blocks of keys for whole blocks of queries."""

    block_size: int
    """Of queries and of keys."""

    @property
    def tile(self) -> int:
        """See `SparsePrefill`."""
        return self.block_size

    def choosing_bytes(self, call: AttentionCall) -> int:
        """What the estimate takes, and its lists."""
        return estimate_bytes(call.prompt_tokens, call.num_heads, self.block_size)

    def _check_share(self, name: str, share: float) -> None:
        if not 0 < share <= 1:
            raise UsageError(f"{name}={share}: want more than 0, and at most 1")

    def _check_block_size(self) -> None:
        if self.block_size not in TILE_SIZES:
            raise UsageError(f"block_size={self.block_size}: want 64 or 128")
