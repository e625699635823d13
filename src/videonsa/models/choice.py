"""How one call of the model attends, and how many rows of it at a time."""

from typing import Literal, NamedTuple

import torch

from videonsa.errors import UsageError
from videonsa.models.config import ATTENTIONS, VideoNSAConfig
from videonsa.models.fused import ROWS_PER_CHUNK
from videonsa.models.recorder import AttentionRecorder
from videonsa.ops.nsa import Backend
from videonsa.ops.spec import NSASpec

_ROUNDED_TO = 128
"""Rows that tiles of matrix products and kernels count in."""


class AttentionChoice(NamedTuple):
    """How one call attends."""

    attention: Literal["nsa", "dense"]
    spec: NSASpec
    backend: Backend
    recorder: AttentionRecorder | None

    @property
    def is_released(self) -> bool:
        """Whether it computes what the published code does, over one whole sequence."""
        return self.attention == "nsa" and self.spec.stream == "sequence"


def choose_attention(
    config: VideoNSAConfig,
    attention: Literal["nsa", "dense"] | None,
    nsa_spec: NSASpec | None,
    backend: Backend,
    recorder: AttentionRecorder | None,
) -> AttentionChoice:
    """What a call asked for, and for the rest what the config says.

    Raises:
        UsageError: an attention that is unknown, or that the model has no gates for.
    """
    chosen: Literal["nsa", "dense"] = attention or config.attention
    if chosen not in ATTENTIONS:
        raise UsageError(f"attention={chosen!r}: want one of {ATTENTIONS}")
    if chosen == "nsa" and config.attention != "nsa":
        raise UsageError(
            "attention='nsa' on a model without gates: load it with attention='nsa' and "
            "fresh_gates=True"
        )
    return AttentionChoice(chosen, nsa_spec or config.nsa_spec, backend, recorder)


def chunk_of_rows(
    wanted: int | None, choice: AttentionChoice, *, output_hidden_states: bool | None
) -> int:
    """How many rows go through the layers at a time; 0: all.

    Args:
        wanted: by the caller; None leaves the choice.
        choice: how the call attends.
        output_hidden_states: those of all layers are wanted.

    Raises:
        UsageError: a number of rows where all must go at once, or a negative one.
    """
    if wanted == 0:
        return 0
    reason = why_at_once(choice, output_hidden_states=bool(output_hidden_states))
    if wanted is None:
        at_once = reason is not None or choice.attention == "dense" or torch.is_grad_enabled()
        return 0 if at_once else ROWS_PER_CHUNK
    if wanted < 0:
        reason = "want a number of rows, or 0 for all at once"
    if reason is not None:
        raise UsageError(f"rows_per_chunk={wanted}: {reason}")
    return wanted


def even_chunk(num_rows: int, most: int) -> int:
    """Rows of a chunk, at most so many: as few chunks as that leaves, and none of a few rows.

    A chunk of the 64 rows that a prompt has over eight whole ones would cost the launches of all
    layers like any other.
    """
    even = -(-num_rows // -(-num_rows // most))
    return min(most, num_rows, -(-even // _ROUNDED_TO) * _ROUNDED_TO)


def why_at_once(choice: AttentionChoice, *, output_hidden_states: bool) -> str | None:
    """Why all rows must go through the layers in one step; None where they need not."""
    if output_hidden_states:
        return "the hidden states of all layers are wanted, of all rows in one step"
    if choice.recorder is not None:
        return "a recorder wants all rows in one step"
    if choice.is_released:
        return "the released preset has blocks over the whole sequence"
    if choice.attention == "nsa" and choice.spec.selection_scope == "block":
        return "with selection_scope='block' all rows of a block choose together"
    return None
