"""Dense attention: every token attends to all before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from videonsa.models.dense import cumulative_lengths, dense_attention
from videonsa.models.methods.protocol import DENSE, AttentionMethod

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep, StepTokens


@dataclass(frozen=True)
class Dense(AttentionMethod):
    """Every token attends to all before it."""

    name = DENSE
    takes_packed = True
    text_is_dense = True

    def prepare(self, tokens: "StepTokens") -> Any:
        """The lengths of packed samples where they differ."""
        return lengths_of(tokens)

    def attend(
        self,
        layer: "HybridAttention",
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: "AttentionStep",
    ) -> Tensor:
        """See `AttentionMethod`."""
        return attend_densely(q, k, v, step)


def lengths_of(tokens: "StepTokens") -> Tensor | None:
    """`cu_seqlens` of packed samples where their lengths differ: what `attend_densely` needs."""
    return cumulative_lengths(tokens.segments, device=tokens.vision_mask.device)


def attend_densely(q: Tensor, k: Tensor, v: Tensor, step: "AttentionStep") -> Tensor:
    """Causal attention to all keys; `step.prepared` is what `lengths_of` gave."""
    tokens = step.tokens
    return dense_attention(
        q,
        k,
        v,
        key_mask=tokens.attention_mask,
        pieces=tokens.segments,
        cu_seqlens=step.prepared,
    )
