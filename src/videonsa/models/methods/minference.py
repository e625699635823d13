"""MInference: each head attends to columns and diagonals, as many of each as its pattern says."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall
from videonsa.models.methods.head_patterns import HeadPatterns, Sizes
from videonsa.models.methods.sparse_prefill import SparsePrefill
from videonsa.ops.block_sparse import BlockLists
from videonsa.ops.estimators.vertical_slash import (
    BYTES_PER_WALK,
    NUM_PROBES,
    TILE,
    heads_at_once,
    vertical_slash_lists,
)

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention

PUBLISHED = "published"
PUBLISHED_FILE = Path(__file__).parents[2] / "assets" / "minference" / "qwen2.5-7b-instruct.json"
SEARCH = "`videonsa methods search minference` searches patterns on a video"


@dataclass(frozen=True)
class MInference(SparsePrefill):
    """Vertical-slash attention with patterns that were searched for each head.

    The published patterns are of Qwen2.5-7B-Instruct, a text model with 28 layers of 28 heads. In
    a model of another shape every head keeps `vertical` columns and `slash` offsets, which is what
    the authors' code does where it has no pattern.
    """

    name = "minference"

    patterns: str | None = PUBLISHED
    """`published`; a file of `videonsa methods search minference`; or None: every head alike."""
    vertical: int = 1000
    """Columns of a head without a pattern."""
    slash: int = 6096
    """Offsets of a head without a pattern."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1, and files without patterns: UsageError."""
        if min(self.vertical, self.slash) < 1:
            raise UsageError(
                f"vertical={self.vertical}, slash={self.slash}: want at least 1 of each"
            )
        if self.patterns is not None:
            assert self._stated is not None, "it was read"

    @property
    def tile(self) -> int:
        """See `SparsePrefill`."""
        return TILE

    @cached_property
    def _stated(self) -> HeadPatterns | None:
        if self.patterns is None:
            return None
        own = Path(self.patterns).expanduser()
        return HeadPatterns.read(PUBLISHED_FILE if self.patterns == PUBLISHED else own)

    def choose(self, layer: "HybridAttention", q: Tensor, k: Tensor) -> BlockLists | None:
        """See `SparsePrefill`; None where every head keeps all columns or all offsets."""
        num_layers, num_heads = layer.config.num_hidden_layers, q.shape[1]
        found = self._of_model(num_layers, num_heads)
        sizes = found[layer.layer_idx] if found else ((self.vertical, self.slash),) * num_heads
        return None if _keep_all(sizes, len(q)) else vertical_slash_lists(q, k, sizes)

    def is_dense(self, call: AttentionCall) -> bool:
        """See `SparsePrefill`; the layers of a call may be some of the model's."""
        stated = self._stated
        sizes = [(self.vertical, self.slash)]
        if stated is not None and stated.shape[1] == call.num_heads:
            sizes += [size for of_layer in stated.sizes for size in of_layer]
        return _keep_all(sizes, call.prompt_tokens)

    def notes(self, num_layers: int, num_heads: int) -> tuple[str, ...]:
        """Which patterns a model of that shape has; see `AttentionMethod`.

        Raises:
            UsageError: a file of another shape.
        """
        stated, is_own = self._stated, self._of_model(num_layers, num_heads) is not None
        if stated is None:
            return ()
        if is_own:
            told = f"head patterns of {stated.model}, searched on {stated.searched_on}"
        else:
            shape = "the published patterns are of {} layers of {} heads".format(*stated.shape)
            told = (
                f"{shape}, not {num_layers} of {num_heads}: every head keeps {self.vertical} "
                f"columns and {self.slash} offsets"
            )
        advice = f"; {SEARCH}" if self.patterns == PUBLISHED else ""
        return (f"minference: {told}{advice}",)

    def choosing_bytes(self, call: AttentionCall) -> int:
        """Lists, and of some heads scores in three copies with keys in float32, or walks."""
        num_tokens, lists = call.prompt_tokens, self.list_bytes(call)
        heads = min(heads_at_once(num_tokens), call.num_heads)
        scores = 3 * 4 * NUM_PROBES * num_tokens
        keys = (4 + call.value_bytes) * num_tokens * call.head_dim
        walks = BYTES_PER_WALK * lists // (4 * call.num_heads)
        return lists + max(heads * max(scores + keys, walks), lists)

    def _of_model(self, num_layers: int, num_heads: int) -> tuple[tuple[Sizes, ...], ...] | None:
        """Sizes by layer and head; None: every head is alike."""
        stated = self._stated
        if stated is None or stated.shape == (num_layers, num_heads):
            return None if stated is None else stated.sizes
        if self.patterns == PUBLISHED:
            return None
        raise UsageError(
            f"{self.patterns} has head patterns of {stated.shape[0]} layers of {stated.shape[1]} "
            f"heads, the model has {num_layers} of {num_heads}: want those of this model; {SEARCH}"
        )


def _keep_all(sizes: Sequence[Sizes], num_tokens: int) -> bool:
    """Whether every head keeps all columns, or all offsets."""
    return min(map(max, sizes)) >= num_tokens
