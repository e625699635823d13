"""`Recorder`: what is told of every step and layer. `Recorders`: several as one."""

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.models.methods import Attended
    from videonsa.models.step import StepTokens

Moment = Literal["attention begins", "gates begin", "gates end", "attention ends"]


class Recorder:
    """Sees q, k, gates, branch outputs, LSEs and selections of every layer, chunk after chunk.

    Here nothing is kept; subclasses override what they want to see. With gradient checkpointing
    a layer is recorded again when the backward pass repeats it.
    """

    wants_branches: bool = False
    """Whether `attended.result` is needed: then kernels give branches, without gradients."""
    takes_packed: bool = False
    """Whether it may be told of packed samples, and of a process's own share of a sequence."""

    def begin_step(self, tokens: "StepTokens") -> None:
        """Called before the layers that see these tokens and keys."""

    def record(self, layer: int, q: Tensor, k: Tensor, attended: "Attended") -> None:
        """Called after the attention of a layer.

        Args:
            layer: its number.
            q: `[B, T, HQ, D]` after mRoPE.
            k: `[B, S, H, D]`.
            attended: its output, and what the method gave beside it.
        """

    def mark(self, layer: int, moment: Moment) -> None:
        """Called inside a layer, to take the time."""


def check_one_sample(tokens: "StepTokens") -> None:
    """Refuse a step of more than one sample: UsageError."""
    if len(tokens.vision_mask) != 1:
        raise UsageError(
            f"a recorder with a batch of {len(tokens.vision_mask)}: want a batch of 1, so ask one "
            "question at a time"
        )


class Recorders(Recorder):
    """Several recorders, told the same."""

    def __init__(self, *recorders: Recorder) -> None:
        self._recorders = recorders
        self.wants_branches = any(one.wants_branches for one in recorders)
        self.takes_packed = all(one.takes_packed for one in recorders)

    def begin_step(self, tokens: "StepTokens") -> None:
        """See `Recorder`."""
        for one in self._recorders:
            one.begin_step(tokens)

    def record(self, layer: int, q: Tensor, k: Tensor, attended: "Attended") -> None:
        """See `Recorder`."""
        for one in self._recorders:
            one.record(layer, q, k, attended)

    def mark(self, layer: int, moment: Moment) -> None:
        """See `Recorder`."""
        for one in self._recorders:
            one.mark(layer, moment)
