"""`AttentionMethod`: how the tokens of a call attend.

A model has parameters (with or without gates); a method is how a call uses them. The methods that
have a name are in `registry.METHODS`. Another one is one more class: pass an object of it as
`method=` to `load`, or to the model's forward.
"""

from abc import ABC, abstractmethod
from dataclasses import Field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall, calls_left
from videonsa.models.methods.pairs import causal_pairs, pairs_of_rows
from videonsa.models.rope import TemporalIds
from videonsa.ops.block_lists import BlockLists, Trim
from videonsa.ops.spec import NSAResult, NSASpec

if TYPE_CHECKING:
    from videonsa.models.attention import HybridAttention
    from videonsa.models.step import AttentionStep, StepTokens

DENSE, SPARSE = "dense", "nsa"
"""The names of the methods that a config can state."""
BEHIND = "attention"
"""The field of a method that compresses tokens and leaves attending to another: that other one."""


class Attended(NamedTuple):
    """What a layer's attention gives a recorder to see."""

    output: Tensor  # [B, T, HQ, D]
    gates: Tensor | None = None  # [B, T, HQ, 3] after the sigmoid
    result: NSAResult | None = None
    """Branch outputs, LSEs and selection, where the recorder wants them."""
    spec: NSASpec | None = None
    """Of the result."""
    pairs: int | Tensor | None = None
    """Query-key pairs that were computed, of all query heads together: a number, or int64 `[]` on
    the device. None: as many as `AttentionMethod.step_pairs` says."""
    lists: BlockLists | None = None
    """Which keys were chosen, where a prompt was read sparsely."""
    trim: Trim | None = None
    """Which pairs of the lists count."""
    values: Tensor | None = None
    """`[B, S, H, D]`, a view: what was summed up. Given to recorders alone."""


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
    else (with `why_at_once`: a step of one token): then tokens are decoded by static steps
    (`models.decoding`), which call neither `attend` nor `kept_after`. A class with one of its own
    says so anew."""
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

    @property
    def full_name(self) -> str:
        """As records have it: the name, with that of a sparse method behind it."""
        behind = self.behind
        return self.name if behind is None else f"{self.name}+{behind.full_name}"

    @property
    def behind(self) -> "AttentionMethod | None":
        """The method that attends in its place, where that is not dense attention."""
        method = getattr(self, BEHIND, None)
        known = isinstance(method, AttentionMethod) and method.full_name != DENSE
        return method if known else None

    def attending_by(self, behind: "AttentionMethod") -> Self:
        """The method with another one that attends in its place."""
        return cast("Self", replace(cast("Any", self), **{BEHIND: behind}))

    @classmethod
    def option_class(cls) -> type | None:
        """The dataclass whose fields are the method's options; None where it has none."""
        return cls if is_dataclass(cls) else None

    @classmethod
    def of_model(cls, spec: NSASpec) -> "AttentionMethod":
        """The method as it is published, for a model with that NSA."""
        return cls()

    def notes(self, num_layers: int, num_heads: int) -> tuple[str, ...]:
        """What to say of it where it is loaded; here, what the method behind it says.

        Args:
            num_layers: of the model.
            num_heads: query heads of a layer.

        Raises:
            UsageError: a model of that shape cannot attend like this.
        """
        return () if self.behind is None else self.behind.notes(num_layers, num_heads)

    def of_depth(self, num_layers: int) -> Self:
        """The method with what depends on the number of decoder layers; here, nothing does."""
        return self

    def parameters(self) -> dict[str, Any] | None:
        """What the method was told, as records keep it; None where there is nothing.

        Here: its fields, and name and parameters of a sparse method behind it.
        """
        if not is_dataclass(self):
            return None
        stated = {one.name: getattr(self, one.name) for one in fields(self) if one.name != BEHIND}
        if (behind := self.behind) is not None:
            stated[BEHIND] = {"name": behind.full_name} | (behind.parameters() or {})
        return stated or None

    def attended_keys(self, tokens_per_frame: int) -> int | None:
        """Keys a vision token attends to, K of the paper's section 3; None: all before it."""
        return None

    def step_pairs(self, tokens: "StepTokens") -> int | Tensor:
        """Query-key pairs that one query head computes for these tokens in a layer.

        Told where `attend` gives no `Attended.pairs`. Here: every token's with itself and all
        before it.

        Returns:
            A number, or int64 `[]` on the device of the tokens; nothing waits for the device.
        """
        return pairs_of_rows(tokens)

    def prompt_pairs(self, call: AttentionCall) -> float | None:
        """Those of a whole prompt in all layers, before it is read; None: its content decides.

        Here: of dense attention to the tokens that `vision_tokens` leaves.
        """
        left = calls_left(call, self.vision_tokens(call))
        return float(sum(one.num_layers * causal_pairs(one.prompt_tokens) for one in left))

    def vision_tokens(self, call: AttentionCall) -> tuple[tuple[int, int], ...]:
        """How many of the vision tokens of a prompt are left, from which layer on.

        Returns:
            A first layer and a number of tokens each, the layers ascending from 0; here all stay.
        """
        return ((0, call.video_tokens),)

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
        """The method with other options.

        Raises:
            UsageError: it has none of these, or values outside their domain.
        """
        if not changes:
            return self
        own: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        known = {one.name for one in own} - {BEHIND}
        if unknown := sorted(set(changes) - known):
            wanted = f"some of {', '.join(sorted(known))}" if known else "none"
            raise UsageError(
                f"method {self.name!r} has no option {', '.join(unknown)}: want {wanted}"
            )
        try:
            return replace(self, **changes)  # type: ignore[type-var]  # it has fields
        except (TypeError, ValueError) as error:
            raise UsageError(f"method {self.name!r}: {error}") from error
