"""How many tokens of a call go through the layers at a time."""

import torch

from videonsa.errors import UsageError
from videonsa.models.fused import ROWS_PER_CHUNK
from videonsa.models.methods import AttentionMethod

_ROUNDED_TO = 128
"""Rows that tiles of matrix products and kernels count in."""


def chunk_of_rows(
    wanted: int | None, method: AttentionMethod, *, output_hidden_states: bool | None
) -> int:
    """How many rows go through the layers at a time; 0: all.

    Args:
        wanted: by the caller; None leaves the choice.
        method: how the call attends.
        output_hidden_states: those of all layers are wanted.

    Raises:
        UsageError: a number of rows where all must go at once, or a negative one.
    """
    if wanted == 0:
        return 0
    reason = why_at_once(method, output_hidden_states=output_hidden_states)
    if wanted is None:
        at_once = reason is not None or not method.is_chunked or torch.is_grad_enabled()
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


def why_at_once(method: AttentionMethod, *, output_hidden_states: bool | None = None) -> str | None:
    """Why all rows must go through the layers in one step; None where they need not."""
    if output_hidden_states:
        return "the hidden states of all layers are wanted, of all rows in one step"
    if method.leaves_after:
        return "tokens leave inside the layers"
    return method.why_at_once()


def why_reread(method: AttentionMethod) -> str | None:
    """Why every question reads its video again, at once with it; None where it need not."""
    if not method.is_causal:
        return "what follows a video changes how it attends"
    return why_at_once(method)
