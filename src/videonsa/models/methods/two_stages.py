"""`TwoStageCompression`: some tokens of a clip are read, and later layers hold some of these."""

from dataclasses import replace
from typing import Any, ClassVar, Self, cast

from videonsa.models.costs import AttentionCall
from videonsa.models.methods.compression import TokenCompression
from videonsa.models.methods.reduction import check_layer, check_ratio
from videonsa.ops.last_row import kept_of


class TwoStageCompression(TokenCompression):
    """Keeps some tokens of a clip, and a share of these in the layers from number `layer` on.

    A subclass has the fields, and says which of them stay there (`kept_after`).
    """

    published: ClassVar[tuple[int, int]]
    """`layer` as published, and the number of layers of the model that it was published for."""

    layer: int | None
    """Number of layers that hold all tokens that are read; None: in proportion as published."""
    layer_ratio: float
    """Share of these that the other layers hold; 1: all, and no layer is asked."""

    def __post_init__(self) -> None:
        """Refuse values outside their domain: UsageError."""
        super().__post_init__()
        check_ratio("layer_ratio", self.layer_ratio)
        if self.layer is not None:
            check_layer("layer", self.layer)

    def of_depth(self, num_layers: int) -> Self:
        """With the layer stated; see `TokenReduction`."""
        stated, (layer, depth) = self, self.published
        if self.layer is None:
            stated = replace(cast("Any", self), layer=max(1, num_layers * layer // depth))
        return super(TwoStageCompression, stated).of_depth(num_layers)

    def notes(self, num_layers: int, num_heads: int) -> tuple[str, ...]:
        """Where tokens leave, in a model that is not as deep as its authors'."""
        behind, (layer, depth) = super().notes(num_layers, num_heads), self.published
        if num_layers == depth or not self.leaves_after:
            return behind
        told = f"{self.name}: tokens leave again after layer {self.layer} of {num_layers}"
        return (f"{told}; published is {layer} of {depth}", *behind)

    @property
    def is_causal(self) -> bool:  # type: ignore[override]
        """See `AttentionMethod`: not where the last token decides."""
        return self.layer_ratio == 1 and super().is_causal

    @property
    def leaves_after(self) -> tuple[int, ...]:  # type: ignore[override]
        """See `AttentionMethod`; known once the number of layers is."""
        return () if self.layer is None or self.layer_ratio == 1 else (self.layer - 1,)

    def vision_tokens(self, call: AttentionCall) -> tuple[tuple[int, int], ...]:
        """See `AttentionMethod`."""
        ((first, count),) = super().vision_tokens(call)
        layer = self.of_depth(call.num_layers).layer
        if self.layer_ratio == 1 or layer is None:
            return ((first, count),)
        return (first, count), (layer, kept_of(count, self.layer_ratio))
