"""FlexPrefill: each head attends to blocks of keys that its last queries choose."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall
from videonsa.models.methods.block_prefill import BlockPrefill
from videonsa.ops.block_lists import BlockLists
from videonsa.ops.estimators.flexprefill import flexprefill_lists, is_dense

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention


@dataclass(frozen=True)
class FlexPrefill(BlockPrefill):
    """Blocks along columns and diagonals of the map or, in query-aware heads, anywhere in it.

    The defaults are those of the authors' scripts. A prompt of up to `min_budget` tokens is dense,
    and so is one of two blocks.
    """

    name = "flexprefill"

    gamma: float = 0.9
    """Share of the attention of the last block of queries that a head keeps; 1: everything."""
    tau: float = 0.1
    """Jensen-Shannon distance below which a head is query-aware; 0: none is."""
    min_budget: int = 1024
    """Keys in columns, and keys in diagonals, that a head has at least."""
    max_budget: int | None = None
    """Keys in columns, and keys in diagonals, that a head has at most; None: no limit. Blocks of
    query-aware heads are not limited."""
    block_size: int = 128
    """Tokens of a block of queries, and of a block of keys."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        self._check_share("gamma", self.gamma)
        self._check_block_size()
        if not self.tau >= 0:
            raise UsageError(f"tau={self.tau}: want 0 or more")
        most = self.min_budget if self.max_budget is None else self.max_budget
        if not 1 <= self.min_budget <= most:
            raise UsageError(
                f"min_budget={self.min_budget}, max_budget={self.max_budget}: want 1 or more keys, "
                "and no fewer at most than at least"
            )

    def choose(self, layer: "HybridAttention", q: Tensor, k: Tensor) -> BlockLists:
        """See `SparsePrefill`."""
        return flexprefill_lists(
            q,
            k,
            gamma=self.gamma,
            tau=self.tau,
            min_budget=self.min_budget,
            max_budget=self.max_budget,
            block_size=self.block_size,
        )

    def is_dense(self, call: AttentionCall) -> bool:
        """See `SparsePrefill`."""
        whole = self.gamma == 1 and self.max_budget is None
        return whole or is_dense(call.prompt_tokens, self.min_budget, self.block_size)
