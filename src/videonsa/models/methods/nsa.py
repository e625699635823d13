"""Native sparse attention: as in the paper, and as it was released."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall, attended_keys, nsa_bytes, nsa_operations
from videonsa.models.methods.dense import attend_densely, lengths_of
from videonsa.models.methods.pairs import nsa_pairs, nsa_prompt_pairs, pairs_of_rows
from videonsa.models.methods.protocol import SPARSE, Attended, AttentionMethod
from videonsa.models.rope import TemporalIds
from videonsa.ops.layout import HybridLayout, hybrid_layout
from videonsa.ops.nsa import Backend, hybrid_attention
from videonsa.ops.spec import BRANCHES, NSASpec
from videonsa.ops.stated_spec import stated_fields
from videonsa.ops.triton.support import why_not_inputs

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep, StepTokens


@dataclass(frozen=True, eq=False)
class StaticGates:
    """Gates that do not depend on tokens."""

    values: Tensor
    """float32 `[layers, HQ, 3]`, from 0 to 1, branches in the order of `BRANCHES`."""

    @classmethod
    def at_half(cls, num_layers: int, num_heads: int) -> Self:
        """As fresh gates start."""
        return cls(torch.full((num_layers, num_heads, len(BRANCHES)), 0.5))

    def of_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Those of a layer for tokens `[B, T, hidden]`, `[B, T, HQ, 3]`."""
        gates: Tensor = self.values[layer].to(hidden)
        return gates.expand(*hidden.shape[:2], *gates.shape).contiguous()


@dataclass(frozen=True)
class NSA(AttentionMethod):
    """Text tokens attend densely, vision tokens by the three branches (paper section 2.2)."""

    name = SPARSE
    uses_gates = True
    is_chunked = True
    takes_packed = True
    text_is_dense = True
    branches = BRANCHES
    rate = "nsa"
    stream: ClassVar[str] = "vision"
    """Of the specs it computes; `nsa_method` chooses the class by it."""

    spec: NSASpec = field(default_factory=NSASpec)
    backend: Backend = "auto"
    static_gates: StaticGates | None = None
    """In place of the learned ones, the same for all tokens; layers then need none of their own."""

    def __post_init__(self) -> None:
        """Refuse a spec of the other class: UsageError."""
        if self.spec.stream != self.stream:
            raise UsageError(
                f"{type(self).__name__} with a spec of stream {self.spec.stream!r}: want "
                f"{self.stream!r}; nsa_method takes either"
            )
        if self.static_gates is not None:
            object.__setattr__(self, "uses_gates", False)  # weights without gates can be run, too

    @property
    def temporal_ids(self) -> TemporalIds:  # type: ignore[override]
        """The spec's."""
        return self.spec.temporal_ids

    @classmethod
    def option_class(cls) -> type:
        """Of the spec's fields."""
        return NSASpec

    @classmethod
    def of_model(cls, spec: NSASpec) -> "NSA":
        """With the spec of the model."""
        return nsa_method(spec)

    def prepare(self, tokens: "StepTokens") -> Any:
        """The layout of text, vision and blocks; as `Dense` without a new vision token."""
        if not tokens.has_vision:
            return lengths_of(tokens)  # no need for gates and streams
        queries, keys = tokens.cumulative
        return hybrid_layout(
            tokens.vision_mask,
            spec=self.spec,
            num_rows=tokens.num_tokens,
            attention_mask=tokens.attention_mask,
            cu_seqlens_q=queries,
            cu_seqlens_k=keys,
            frame_sizes=self._frame_sizes(tokens),
        )

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
        if not step.tokens.has_vision:
            return attend_densely(q, k, v, step)
        gates = self._gates(layer, hidden, step)
        result = hybrid_attention(
            q,
            k,
            v,
            gates,
            self._vision_mask(step),
            spec=self.spec,
            attention_mask=step.tokens.attention_mask,
            return_branches=step.wants_branches,
            backend=self.backend,
            layout=self._layout(step),
            layer=layer.layer_idx,
        )
        if isinstance(result, Tensor):
            return Attended(result, gates)
        return Attended(result.output, gates, result, self.spec)

    def _gates(self, layer: "HybridAttention", hidden: Tensor, step: "AttentionStep") -> Tensor:
        if self.static_gates is not None:
            return self.static_gates.of_layer(layer.layer_idx, hidden)
        return layer.branch_gates(hidden, step, temperature=self.spec.gate_temperature)

    def _frame_sizes(self, tokens: "StepTokens") -> list[int] | None:
        """Of frames that have tokens: where tokens left, a frame may have none."""
        by_frames = self.spec.block_size == "frame"
        return [size for size in tokens.frame_sizes() if size] if by_frames else None

    def _vision_mask(self, step: "AttentionStep") -> Tensor:
        return step.tokens.vision_mask

    def _layout(self, step: "AttentionStep") -> HybridLayout | None:
        layout: HybridLayout = step.prepared
        return layout

    def why_at_once(self) -> str | None:
        """See `AttentionMethod`."""
        if self.spec.selection_scope == "block":
            return "with selection_scope='block' all rows of a block choose together"
        return None

    def parameters(self) -> dict[str, Any] | None:
        """The fields of the spec."""
        stated = stated_fields(self.spec)
        return stated if self.static_gates is None else stated | {"gates": "static"}

    def attended_keys(self, tokens_per_frame: int) -> int | None:
        """K = n * s + w of the branches that are on; compressed keys are not counted."""
        return attended_keys(self.spec, tokens_per_frame)

    def step_pairs(self, tokens: "StepTokens") -> int | Tensor:
        """Of text rows with all keys, and of vision rows in the branches that are on."""
        return nsa_pairs(tokens, self.spec) if tokens.has_vision else pairs_of_rows(tokens)

    def prompt_pairs(self, call: AttentionCall) -> float:
        """See `AttentionMethod`."""
        return nsa_prompt_pairs(call, self.spec)

    def workspace_bytes(self, call: AttentionCall) -> int:
        """Queries, gates and the buffers of kernels or reference."""
        return nsa_bytes(call, self.spec)

    def operations(self, call: AttentionCall) -> float:
        """Products of the branches and of the scoring of blocks."""
        return nsa_operations(call, self.spec)

    def runs_by_kernels(self, q: Tensor, k: Tensor) -> bool:
        """See `AttentionMethod`."""
        return why_not_inputs(q, k, self.spec) is None

    def config_fields(self) -> dict[str, Any]:
        """See `AttentionMethod`."""
        return {"attention": SPARSE, "nsa": self.spec}

    def with_options(self, **changes: Any) -> Self:
        """Fields of the spec changed, `branches` to ablate the others.

        Raises:
            UsageError: fields that no spec has, or values outside their domain.
        """
        try:
            return replace(self, spec=self.spec.with_options(**changes))
        except (TypeError, ValueError) as error:
            raise UsageError(f"the attention asked for cannot be: {error}") from error


@dataclass(frozen=True)
class ReleasedNSA(NSA):
    """What the published code computes, over one whole sequence."""

    is_chunked = False
    is_causal = False
    rate = "released_rows"
    stream = "sequence"

    spec: NSASpec = field(default_factory=NSASpec.released)

    def prepare(self, tokens: "StepTokens") -> Any:
        """Which keys are vision: by token ids, or by position ids; None without a new one."""
        if not tokens.has_vision:
            return None
        whole = tokens.num_tokens == tokens.vision_mask.shape[1]
        if self.spec.vision_mask == "token_ids" or not whole:
            return tokens.vision_mask
        t, h, w = tokens.position_ids
        off_diagonal: Tensor = (t != h) | (h != w)
        padding = tokens.attention_mask
        return off_diagonal if padding is None else off_diagonal & padding

    def _vision_mask(self, step: "AttentionStep") -> Tensor:
        mask: Tensor = step.prepared
        return mask

    def _layout(self, step: "AttentionStep") -> HybridLayout | None:
        return None

    def why_at_once(self) -> str | None:
        """See `AttentionMethod`."""
        return "the released preset has blocks over the whole sequence"

    def operations(self, call: AttentionCall) -> float:
        """Tokens through layers: its time was measured as such."""
        return call.prompt_tokens * call.num_layers

    def runs_by_kernels(self, q: Tensor, k: Tensor) -> bool:
        """See `AttentionMethod`."""
        return q.element_size() == 2


def nsa_method(spec: NSASpec, *, backend: Backend = "auto") -> NSA:
    """The method of a spec: the paper's, or the released one's."""
    return (ReleasedNSA if spec.stream == "sequence" else NSA)(spec, backend)
