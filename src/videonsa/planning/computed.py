"""`Computed`: how many vision tokens the layers hold, and how much attention is computed."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from videonsa.models.costs import AttentionCall
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.pairs import causal_pairs


class LayerTokens(NamedTuple):
    """The vision tokens of a prompt in the layers from one on."""

    first_layer: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """What attention took of a prompt, beside dense attention to all of it."""

    tower_tokens: int
    """Vision tokens that the tower read."""
    left: tuple[LayerTokens, ...]
    """Those that the layers hold, from layer 0 on; once more for each layer before which some left.
    """
    attention: float | None
    """Query-key pairs computed, as a share of those of causal dense attention to the whole prompt
    in all layers; None where that is not known."""

    @classmethod
    def of(
        cls, *, tower_tokens: int, left: list[LayerTokens], pairs: float | None, dense_pairs: int
    ) -> Self:
        """Without layers before which none left."""
        before = [None, *(one.tokens for one in left)]
        changes = [one for one, tokens in zip(left, before, strict=False) if one.tokens != tokens]
        share = None if pairs is None else pairs / dense_pairs
        return cls(tower_tokens=tower_tokens, left=tuple(changes), attention=share)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"left": [one._asdict() for one in self.left]}

    def describe(self) -> str:
        """In words, in one line."""
        kept = f"all {self.tower_tokens} video tokens in every layer"
        if [one.tokens for one in self.left] != [self.tower_tokens]:
            steps = [f"{self.tower_tokens} video tokens from the tower"]
            for first, tokens in self.left:
                place = "before layer 0" if first == 0 else f"after layer {first - 1}"
                steps.append(f"{tokens} {place}")
            kept = " -> ".join(steps)
        if self.attention is None:
            return f"{kept}; share of dense attention not known"
        return f"{kept}; {100 * self.attention:.3g} % of dense attention to the whole prompt"


def estimate_computed(method: AttentionMethod, call: AttentionCall) -> Computed:
    """What a prompt will take; its attention is not known where the content decides."""
    return Computed.of(
        tower_tokens=call.video_tokens,
        left=[LayerTokens(*one) for one in method.vision_tokens(call)],
        pairs=method.prompt_pairs(call),
        dense_pairs=call.num_layers * causal_pairs(call.prompt_tokens),
    )
