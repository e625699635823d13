"""`AttentionMethod`: how the tokens of a call attend. Dense, NSA, and NSA as it was released.

A model has parameters (with or without gates); a method is how a call uses them. Another method is
one more class like these: pass an object of it as `method=` to `load`, or to the model's forward.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall, attended_keys, nsa_bytes, nsa_operations
from videonsa.models.dense import cumulative_lengths, dense_attention
from videonsa.models.rope import TemporalIds
from videonsa.ops.layout import HybridLayout, hybrid_layout
from videonsa.ops.nsa import Backend, hybrid_attention
from videonsa.ops.spec import BRANCHES, NSAResult, NSASpec
from videonsa.ops.stated_spec import stated_fields
from videonsa.ops.triton.support import why_not_inputs

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep, StepTokens


class Attended(NamedTuple):
    """What a layer's attention gives a recorder to see."""

    output: Tensor  # [B, T, HQ, D]
    gates: Tensor | None = None  # [B, T, HQ, 3] after the sigmoid
    result: NSAResult | None = None
    """Branch outputs, LSEs and selection, where the recorder wants them."""
    spec: NSASpec | None = None
    """Of the result."""


class AttentionMethod(ABC):
    """How one call of the model attends.

    `name` and `attend` have to be given. The rest is what planning, the engine and records have to
    know; its values here hold for any causal attention.
    """

    name: ClassVar[str]
    """In records and messages."""
    uses_gates: ClassVar[bool] = False
    """Whether layers need the gates of the three branches."""
    is_chunked: ClassVar[bool] = False
    """Whether a long prefill goes through the layers in chunks where the caller says nothing."""
    is_causal: ClassVar[bool] = True
    """Whether a token's output does not depend on what follows: only then can a video be prefilled
    before its question."""
    takes_packed: ClassVar[bool] = False
    """Whether `attend` heeds `step.tokens.segments`, that is several packed samples, or pieces of a
    process's share of a sequence; else both are refused."""
    text_is_dense: ClassVar[bool] = False
    """Whether a step of text tokens alone is dense attention to all keys before them, and nothing
    else: then tokens are decoded by static steps (`models.decoding`), which call neither `attend`
    nor `kept_after`. A class with one of its own says so anew."""
    branches: ClassVar[tuple[str, ...]] = ()
    """What can be ablated."""
    temporal_ids: TemporalIds | None = None
    """The rule of temporal position ids it was made for; None: the config's."""
    leaves_after: tuple[int, ...] = ()
    """Layers after which tokens may leave the step, never the last; see `kept_after`."""
    rate: ClassVar[str] = "dense"
    """The measured rate (a field of `planning.speed.Rates`) that `operations` are divided by."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {"attend", "leaves_after", "kept_after"} & set(vars(cls))
        if own and "text_is_dense" not in vars(cls):
            cls.text_is_dense = False

    @abstractmethod
    def attend(
        self,
        layer: "HybridAttention",
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: "AttentionStep",
    ) -> Tensor | Attended:
        """The attention of one layer, before its output projection.

        Args:
            layer: whose parameters these are; `layer.branch_gates` gives its gates.
            hidden: `[B, T, hidden]`, the layer's normed input.
            q: `[B, T, HQ, D]` after mRoPE.
            k: `[B, S, H, D]`, the cached ones included; the T tokens are the last of the S keys.
            v: `[B, S, H, D]`.
            step: which tokens these are, which of them are padding or of one packed sample, and
                what `prepare` gave.

        Returns:
            `[B, T, HQ, D]`, alone or with what a recorder may see.
        """

    def prepare(self, tokens: "StepTokens") -> Any:
        """What holds for all layers of a step: None, or anything that has `to(device)`."""
        return None

    def kept_after(
        self, layer: int, hidden: Tensor, step: "AttentionStep", following: Any
    ) -> Tensor | None:
        """Which of the T tokens go on after a layer of `leaves_after`; None: all.

        Asked in every step, a decoded token's included.

        Args:
            layer: its number.
            hidden: `[1, T, hidden]`, its output.
            step: as `attend` had it in that layer; what `attend` found out about its tokens can be
                left in `step.found`.
            following: the decoder layer that comes next.

        Returns:
            int64 `[K]`, ascending places among the T; the last token is one of them.
        """
        return None

    def why_at_once(self) -> str | None:
        """Why all tokens must go through the layers in one step; None where they need not.

        That tokens leave inside the layers is a reason that need not be given here.
        """
        return None

    def parameters(self) -> dict[str, Any] | None:
        """What the method was told, as records keep it; None where there is nothing."""
        return None

    def attended_keys(self, tokens_per_frame: int) -> int | None:
        """Keys a vision token attends to, K of the paper's section 3; None: all before it."""
        return None

    def workspace_bytes(self, call: AttentionCall) -> int:
        """Peak bytes beside k and v while a layer attends: here, queries and output."""
        return 2 * call.query_bytes

    def operations(self, call: AttentionCall) -> float:
        """Of a prefill in all layers, in the unit of `rate`: here, of dense attention."""
        return 2.0 * call.prompt_tokens**2 * call.width * call.num_layers

    def runs_by_kernels(self, q: Tensor, k: Tensor) -> bool:
        """Whether GPU kernels of its own take q `[B, T, HQ, D]` and k `[B, S, H, D]`."""
        return False

    def config_fields(self) -> dict[str, Any]:
        """The fields of `VideoNSAConfig` for a model that attends like this."""
        return {"attention": SPARSE if self.uses_gates else DENSE}

    def with_options(self, **changes: Any) -> Self:
        """The method with other parameters.

        Raises:
            UsageError: it has none of these.
        """
        if changes:
            raise UsageError(f"method {self.name!r} has no parameters: want none, not {changes}")
        return self


class Dense(AttentionMethod):
    """Every token attends to all before it."""

    name = "dense"
    takes_packed = True
    text_is_dense = True

    def prepare(self, tokens: "StepTokens") -> Any:
        """The lengths of packed samples where they differ."""
        return _lengths(tokens)

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
        return _densely(q, k, v, step)


@dataclass(frozen=True)
class NSA(AttentionMethod):
    """Text tokens attend densely, vision tokens by the three branches (paper section 2.2)."""

    name = "nsa"
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

    def __post_init__(self) -> None:
        """Refuse a spec of the other class: UsageError."""
        if self.spec.stream != self.stream:
            raise UsageError(
                f"{type(self).__name__} with a spec of stream {self.spec.stream!r}: want "
                f"{self.stream!r}; nsa_method takes either"
            )

    @property
    def temporal_ids(self) -> TemporalIds:  # type: ignore[override]
        """The spec's."""
        return self.spec.temporal_ids

    def prepare(self, tokens: "StepTokens") -> Any:
        """The layout of text, vision and blocks; as `Dense` without a new vision token."""
        if not tokens.has_vision:
            return _lengths(tokens)  # no need for gates and streams
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
            return _densely(q, k, v, step)
        gates = layer.branch_gates(hidden, step, temperature=self.spec.gate_temperature)
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
        return stated_fields(self.spec)

    def attended_keys(self, tokens_per_frame: int) -> int | None:
        """K = n * s + w of the branches that are on; compressed keys are not counted."""
        return attended_keys(self.spec, tokens_per_frame)

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


DENSE, SPARSE = Dense.name, NSA.name
"""The methods that a config can state."""


def nsa_method(spec: NSASpec, *, backend: Backend = "auto") -> NSA:
    """The method of a spec: the paper's, or the released one's."""
    return (ReleasedNSA if spec.stream == "sequence" else NSA)(spec, backend)


def named_method(name: str, spec: NSASpec) -> AttentionMethod:
    """The method that a config or a caller names.

    Raises:
        UsageError: another name.
    """
    if name == DENSE:
        return Dense()
    if name == SPARSE:
        return nsa_method(spec)
    raise UsageError(f"method={name!r}: want one of {DENSE!r} and {SPARSE!r}, or a method object")


def _lengths(tokens: "StepTokens") -> Tensor | None:
    return cumulative_lengths(tokens.segments, device=tokens.vision_mask.device)


def _densely(q: Tensor, k: Tensor, v: Tensor, step: "AttentionStep") -> Tensor:
    """`step.prepared` is what `_lengths` gave."""
    tokens = step.tokens
    return dense_attention(
        q,
        k,
        v,
        key_mask=tokens.attention_mask,
        pieces=tokens.segments,
        cu_seqlens=step.prepared,
    )
