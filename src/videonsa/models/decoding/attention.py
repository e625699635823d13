"""How the tokens of a static step attend, and where their keys go."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import AttentionMethod
from videonsa.ops.cached_attention import SharedKeys, cached_attention

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep


class CachedAttention(AttentionMethod):
    """Text attends to all keys before it, in memory whose filling is read on the device."""

    name = "cached"

    def __init__(self, starts: Tensor, shared: Sequence[SharedKeys] | None) -> None:
        """Of one step.

        Args:
            starts: int32 `[L, N]`, rows of each layer's memory of each sample before the new ones.
            shared: of each layer, the keys that all samples see; None: there are none.
        """
        self._starts = starts
        self._shared = shared

    def attend(
        self,
        layer: "HybridAttention",
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: "AttentionStep",
    ) -> Tensor:
        """See `AttentionMethod`; k and v are the whole memory, `[N, M, H, D]`."""
        shared = None if self._shared is None else self._shared[layer.layer_idx]
        return cached_attention(q, k, v, self._starts[layer.layer_idx], shared=shared)


class WritesInPlace(VideoNSACache):
    """What the layers of one static step take for their cache: memory that does not move."""

    def __init__(self, memory: Sequence[tuple[Tensor, Tensor]], places: Tensor) -> None:
        """For the rows of one step.

        Args:
            memory: keys and values of each layer, `[N, M, H, D]`.
            places: int64 `[L, N * T]`, where the new rows go among all N * M of each layer.
        """
        super().__init__()
        self._memory = memory
        self._places = places

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values `[N, H, T, D]`; gives the memory, `[N, H, M, D]`."""
        keys, values = self._memory[layer_idx]
        for memory, new in ((keys, key_states), (values, value_states)):
            rows = memory.view(-1, *memory.shape[2:])
            rows.index_copy_(0, self._places[layer_idx], new.transpose(1, 2).flatten(0, 1))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def count_pairs(self, pairs: Callable[[], float | Tensor]) -> None:
        """Nothing: the cache counts the rows that were read once it is told of them."""
