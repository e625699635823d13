"""FastV: vision tokens leave after the first layers, by the attention of the last token."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from videonsa.models.costs import AttentionCall
from videonsa.models.methods.protocol import Attended
from videonsa.models.methods.reduction import TokenReduction, check_layer, check_ratio
from videonsa.ops.last_row import kept_of, last_row_attention, most_attended

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep


@dataclass(frozen=True)
class FastV(TokenReduction):
    """Layers from number `layer` on hold the vision tokens that the last token attends to most.

    How much it attends is that of the layer before, a mean over heads; only this one row is
    computed. Text tokens stay, and all tokens keep their positions. Tokens leave once, where a
    prompt is read.
    """

    name = "fastv"
    is_causal = False  # the last token decides

    layer: int = 2
    """K of the paper: the number of layers that hold all tokens."""
    ratio: float = 0.5
    """Share of the vision tokens that stays: 1 - R of the paper."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        super().__post_init__()
        check_layer("layer", self.layer)
        check_ratio("ratio", self.ratio)

    @property
    def leaves_after(self) -> tuple[int, ...]:  # type: ignore[override]
        """See `AttentionMethod`."""
        return (self.layer - 1,)

    text_is_dense = TokenReduction.text_is_dense  # text tokens stay

    def attend(
        self,
        layer: "HybridAttention",
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: "AttentionStep",
    ) -> Tensor | Attended:
        """See `AttentionMethod`; notes how much the last token attends to each."""
        if layer.layer_idx in self.leaves_after and step.tokens.has_vision:
            padding = step.tokens.attention_mask
            mask = None if padding is None else padding[-1]
            attention = last_row_attention(q[-1, -1], k[-1], key_mask=mask)
            step.found[layer.layer_idx] = attention[-q.shape[1] :]
        return super().attend(layer, hidden, q, k, v, step)

    def kept_after(
        self, layer: int, hidden: Tensor, step: "AttentionStep", following: Any
    ) -> Tensor | None:
        """See `AttentionMethod`."""
        if not step.tokens.has_vision:
            return None
        vision = step.tokens.vision_mask[0, -hidden.shape[1] :]
        return most_attended(step.found[layer].to(hidden.device), vision, ratio=self.ratio)

    def vision_tokens(self, call: AttentionCall) -> tuple[tuple[int, int], ...]:
        """See `AttentionMethod`."""
        return (0, call.video_tokens), (self.layer, kept_of(call.video_tokens, self.ratio))
