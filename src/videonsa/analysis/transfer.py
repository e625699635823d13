"""`transfer`: weights trained one way, run the other (paper Table 3, Dense-NSA)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from videonsa.analysis.arms import Comparison, compare_arms, percent, told_difference
from videonsa.analysis.asked import Asked
from videonsa.analysis.drawing import draw_arms
from videonsa.analysis.finding import Finding, Measuring, Progress
from videonsa.errors import UsageError
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import NSA, StaticGates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """What weights without gates are run with."""

    sparse: str = "nsa"
    """A method as text, for example nsa:block_size=16,num_selected_blocks=8."""


@dataclass(frozen=True, kw_only=True)
class Transfer(Finding):
    """Accuracy as trained, and under the other attention."""

    name = "transfer"
    options: ClassVar[type] = TransferOptions

    trained: str
    """How the weights attend as they were trained."""
    compared: Comparison

    @classmethod
    def measure(
        cls, qa: "VideoQA", asked: Asked, options: TransferOptions, *, progress: Progress
    ) -> "Transfer":
        """See `Finding`; weights without gates of their own get gates at one half.

        Raises:
            UsageError: a model that attends in a third way.
        """
        measuring = Measuring(qa, asked, options)
        trained, other, label = _ways(qa, options)
        compared = compare_arms(
            qa, asked, [(f"{trained.name}, as trained", trained), (label, other)], progress=progress
        )
        return cls(facts=measuring.facts(method=trained), trained=trained.name, compared=compared)

    def draw(self, figure: "Figure", look: "Look") -> None:
        """See `Finding`."""
        draw_arms(figure, look, self.compared, title=f"Trained {self.trained}, run both ways")

    def sentences(self) -> tuple[str, ...]:
        """See `Finding`."""
        first, *others = self.compared.arms
        told = (f"{first.label}: {percent(first.accuracy)} right.",)
        return (*told, *(told_difference(one, than="the weights as trained") for one in others))


def _ways(qa: "VideoQA", options: TransferOptions) -> tuple[AttentionMethod, AttentionMethod, str]:
    """As trained, the other way, and its label."""
    own, config = qa.model.method, qa.model.config
    if isinstance(own, NSA) and not has_fresh_gates(qa):
        return own, Dense(), "dense"
    if not isinstance(own, NSA | Dense):
        raise UsageError(
            f"transfer with method {own.full_name!r}: want weights as they were trained"
        )
    sparse = config.method_of(options.sparse)
    if not isinstance(sparse, NSA):
        raise UsageError(f"--set sparse={options.sparse}: want nsa, with options of its own")
    text = config.text_config
    half = StaticGates.at_half(text.num_hidden_layers, text.num_attention_heads)
    gated = NSA(sparse.spec, sparse.backend, half)
    return Dense(), gated, "nsa, gates at one half"


def has_fresh_gates(qa: "VideoQA") -> bool:
    """Whether gates are as they start: every last projection is zero."""
    attention: list[Any] = [getattr(layer, "self_attn") for layer in qa.model.decoder_layers]  # noqa: B009
    return all(one.has_gates and not bool(one.g_proj_2.weight.count_nonzero()) for one in attention)
