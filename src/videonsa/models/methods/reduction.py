"""`TokenReduction`: methods by which fewer tokens attend; another method says how these do.

Tokens leave before the language model (`compression.TokenCompression`) or inside its layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall, calls_left
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.protocol import BEHIND, Attended, AttentionMethod
from videonsa.models.rope import TemporalIds

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep, StepTokens

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class TokenReduction(AttentionMethod):
    """Fewer tokens attend, by `attention`, to which all is left that is not said here.

    A subclass says how many tokens are left (`vision_tokens`), and lets the others leave; its other
    fields are its options.
    """

    attention: AttentionMethod = field(default_factory=Dense)

    def __post_init__(self) -> None:
        """Refuse a second one: UsageError."""
        if isinstance(self.attention, TokenReduction):
            raise UsageError(
                f"method {self.full_name!r}: one method lets tokens leave: want one behind the + "
                "that says how they attend"
            )

    def of_depth(self, num_layers: int) -> Self:
        """See `AttentionMethod`.

        Raises:
            UsageError: tokens would leave after a layer that is not there, or after the last.
        """
        if any(layer > num_layers - 2 for layer in self.leaves_after):
            raise UsageError(
                f"method {self.full_name!r} with layer={self.leaves_after[-1] + 1} on a model of "
                f"{num_layers} layers: want {num_layers - 1} at most"
            )
        return self

    @property
    def uses_gates(self) -> bool:  # type: ignore[override]
        """See `AttentionMethod`."""
        return self.attention.uses_gates

    @property
    def is_chunked(self) -> bool:  # type: ignore[override]
        """See `AttentionMethod`."""
        return self.attention.is_chunked

    @property
    def is_causal(self) -> bool:  # type: ignore[override]
        """See `AttentionMethod`."""
        return self.attention.is_causal

    @property
    def text_is_dense(self) -> bool:  # type: ignore[override]
        """See `AttentionMethod`."""
        return self.attention.text_is_dense

    @property
    def branches(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `AttentionMethod`."""
        return self.attention.branches

    @property
    def temporal_ids(self) -> TemporalIds | None:  # type: ignore[override]
        """See `AttentionMethod`."""
        return self.attention.temporal_ids

    @property
    def rate(self) -> str:  # type: ignore[override]
        """See `AttentionMethod`."""
        return self.attention.rate

    def prepare(self, tokens: "StepTokens") -> Any:
        """See `AttentionMethod`."""
        return self.attention.prepare(tokens)

    def attend(
        self,
        layer: "HybridAttention",
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: "AttentionStep",
    ) -> Tensor | Attended:
        """See `AttentionMethod`."""
        return self.attention.attend(layer, hidden, q, k, v, step)

    def why_at_once(self) -> str | None:
        """See `AttentionMethod`."""
        return self.attention.why_at_once()

    def step_pairs(self, tokens: "StepTokens") -> int | Tensor:
        """See `AttentionMethod`."""
        return self.attention.step_pairs(tokens)

    def attended_keys(self, tokens_per_frame: int) -> int | None:
        """See `AttentionMethod`; the frames are those of the tokens that are left."""
        return self.attention.attended_keys(tokens_per_frame)

    def prompt_pairs(self, call: AttentionCall) -> float | None:
        """See `AttentionMethod`."""
        counts = self._of_calls(self.attention.prompt_pairs, call)
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def workspace_bytes(self, call: AttentionCall) -> int:
        """See `AttentionMethod`: of the layers with the most tokens."""
        return max(self._of_calls(self.attention.workspace_bytes, call))

    def operations(self, call: AttentionCall) -> float:
        """See `AttentionMethod`."""
        return sum(self._of_calls(self.attention.operations, call))

    def _of_calls(self, of: Callable[[AttentionCall], _Found], call: AttentionCall) -> list[_Found]:
        """Of each run of layers that hold the same tokens."""
        return [of(one) for one in calls_left(call, self.vision_tokens(call))]

    def runs_by_kernels(self, q: Tensor, k: Tensor) -> bool:
        """See `AttentionMethod`."""
        return self.attention.runs_by_kernels(q, k)

    def config_fields(self) -> dict[str, Any]:
        """See `AttentionMethod`."""
        return self.attention.config_fields()

    def with_options(self, **changes: Any) -> Self:
        """Its own options changed, and those that it does not have, of the method behind it.

        Raises:
            UsageError: neither has them, or values outside their domain.
        """
        known = {one.name for one in fields(self)} - {BEHIND}
        own = {name: value for name, value in changes.items() if name in known}
        others = {name: value for name, value in changes.items() if name not in known}
        changed = super().with_options(**(own if self.behind is not None else changes))
        if others and self.behind is not None:
            changed = replace(changed, attention=self.attention.with_options(**others))
        return changed


def check_ratio(name: str, value: float) -> None:
    """Refuse a share that is none: UsageError."""
    if not 0 < value <= 1:
        raise UsageError(f"{name}={value}: want a share of the tokens above 0, and 1 at most")


def check_layer(name: str, value: int) -> None:
    """Refuse a number of layers below 1: UsageError."""
    if value < 1:
        raise UsageError(f"{name}={value}: want a number of layers, 1 at least")
