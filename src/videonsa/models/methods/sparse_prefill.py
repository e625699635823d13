"""`SparsePrefill`: the rows of a whole prompt attend to keys that are chosen from their q and k."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall
from videonsa.models.dense import dense_attention
from videonsa.models.methods.protocol import Attended, AttentionMethod
from videonsa.ops.block_lists import Trim
from videonsa.ops.block_sparse import BlockLists, block_sparse_attention, computed_pairs
from videonsa.ops.block_sparse_reference import SCORES_PER_CHUNK
from videonsa.ops.triton.support import why_not_block_sparse_inputs

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep

_COPIES_PER_CHUNK = 3  # scores, masks and probabilities of a chunk of the reference


class SparsePrefill(AttentionMethod):
    """Training-free sparse attention of a prompt; tokens that are decoded attend to all keys.

    A subclass chooses keys for each query head from the queries and keys of a layer, after mRoPE,
    of text and vision tokens alike. What it chooses hangs on the last rows and on the whole
    sequence. So a prompt is one sample, without padding, read in one step with nothing before it;
    whatever else comes is refused.
    """

    is_causal = False
    text_is_dense = True

    @property
    def tile(self) -> int:
        """Rows and keys of a tile."""
        return 128

    @abstractmethod
    def choose(self, layer: "HybridAttention", q: Tensor, k: Tensor) -> BlockLists | None:
        """Which keys the rows of a prompt attend to in a layer.

        Args:
            layer: whose attention it is.
            q: `[T, HQ, D]`, T > 1.
            k: `[T, H, D]`; query head h reads KV head h // (HQ / H).

        Returns:
            Lists of HQ heads; None: all keys before a row.
        """

    def trim(self, num_tokens: int) -> Trim | None:
        """Which pairs of the lists count in a prompt of T tokens; None: all that are causal."""
        return None

    def attend(
        self,
        layer: "HybridAttention",
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: "AttentionStep",
    ) -> Tensor | Attended:
        """See `AttentionMethod`.

        Raises:
            UsageError: tokens that are neither a whole prompt of one sample nor decoded.
        """
        if q.shape[1] == 1:
            return dense_attention(q, k, v, key_mask=step.tokens.attention_mask)
        self._check_whole(step, num_keys=k.shape[1])
        lists = self.choose(layer, q[0], k[0])
        if lists is None:
            return dense_attention(q, k, v)
        num_tokens = q.shape[1]
        trim = self.trim(num_tokens)
        output = block_sparse_attention(
            q[0],
            k[0],
            v[0],
            lists,
            num_init=0 if trim is None else trim.num_init,
            window=None if trim is None else trim.window,
            num_last=0 if trim is None else trim.num_last,
        )
        pairs = computed_pairs(lists, num_tokens).sum()
        return Attended(output[None], pairs=pairs, lists=lists, trim=trim)

    def why_at_once(self) -> str | None:
        """See `AttentionMethod`."""
        return f"{self.name} chooses keys by the last rows of the whole prompt"

    def is_dense(self, call: AttentionCall) -> bool:
        """Whether a prompt of that shape attends to all keys in all layers, whatever it holds."""
        return False

    def prompt_pairs(self, call: AttentionCall) -> float | None:
        """Those of a prompt that is dense; else None, as its content decides."""
        return super().prompt_pairs(call) if self.is_dense(call) else None

    def workspace_bytes(self, call: AttentionCall) -> int:
        """Queries, output, lists of every tile, and what it takes to choose or to attend."""
        pairs = min(SCORES_PER_CHUNK, call.chunk_tokens * call.prompt_tokens)
        reference = 0 if call.kernels else _COPIES_PER_CHUNK * 4 * pairs
        attending = self.list_bytes(call) + reference
        return 2 * call.query_bytes + max(attending, self.choosing_bytes(call))

    def list_bytes(self, call: AttentionCall) -> int:
        """The most that lists of a layer take: here, with every tile."""
        query_tiles = -(-call.prompt_tokens // self.tile)
        return 4 * call.num_heads * query_tiles * (query_tiles + 1) // 2

    def choosing_bytes(self, call: AttentionCall) -> int:
        """Peak bytes while keys are chosen, their lists included."""
        return 0

    def runs_by_kernels(self, q: Tensor, k: Tensor) -> bool:
        """See `AttentionMethod`."""
        return why_not_block_sparse_inputs(q) is None

    def _check_whole(self, step: "AttentionStep", *, num_keys: int) -> None:
        tokens = step.tokens
        num_samples = len(tokens.vision_mask)
        came = {
            f"a batch of {num_samples}": num_samples != 1,
            "padding": tokens.attention_mask is not None,
            "packed samples": tokens.segments is not None,
            f"{num_keys - tokens.num_tokens} tokens read before": num_keys > tokens.num_tokens,
        }
        if found := [what for what, is_there in came.items() if is_there]:
            raise UsageError(
                f"{tokens.num_tokens} tokens with {' and '.join(found)}: method {self.name!r} "
                "reads one whole prompt in one step, then a token at a time"
            )
