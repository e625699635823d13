"""The loss without the logits of a whole sequence: a long one would take gigabytes for them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videonsa.errors import UsageError
from videonsa.parallel.context import ContextParallelGroup
from videonsa.video.chat import IGNORED_LABEL

ROWS_AT_A_TIME = 1024
"""Rows that have logits at a time: 0.6 GB of float32 for the 152,064 tokens of the 7B model."""


def loss_of_labels(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    num_items: Tensor | int | None,
    positions: Tensor | None = None,
    cp_group: ContextParallelGroup | None = None,
) -> Tensor:
    """The cross-entropy of the next tokens, equal to that of all logits.

    Only rows whose next token has a label go through the head, `ROWS_AT_A_TIME` at a time, and
    backward computes their logits once more.

    Args:
        hidden: last hidden states, `[B, t, hidden]`.
        labels: int64 `[B, T]`, -100 where there is no loss.
        head: hidden states to logits.
        num_items: what the sum of losses is divided by; None is the number of labels.
        positions: int64 `[t]`, which of the T rows `hidden` are; None is all.
        cp_group: with the processes that have the other rows. The loss is then equal on all of
            them, and its gradients are the share of this one, whose sum is the gradient.

    Raises:
        UsageError: not as many labels as rows, as with `logits_to_keep`.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)  # a row predicts the next one
    count = (targets != IGNORED_LABEL).sum() if num_items is None else num_items
    own = targets if positions is None else targets[:, positions.to(targets.device)]
    if own.shape != hidden.shape[:2]:
        raise UsageError(
            f"{list(own.shape)} labels for {list(hidden.shape[:2])} rows: want loss_only without "
            "logits_to_keep"
        )
    own = own.to(hidden.device)
    counts = own != IGNORED_LABEL
    total = hidden.new_zeros((), dtype=torch.float32)
    # Without a label one empty part remains: the head takes part in every step of every process.
    parts = (tensor.split(ROWS_AT_A_TIME) for tensor in (hidden[counts], own[counts]))
    for rows, wanted in zip(*parts, strict=True):
        total = total + checkpoint(
            _sum_of_losses, rows, wanted, head, use_reentrant=False, preserve_rng_state=False
        )
    loss = total / count
    return loss if cp_group is None else cp_group.sum(loss)


def _sum_of_losses(rows: Tensor, wanted: Tensor, head: nn.Module) -> Tensor:
    return F.cross_entropy(head(rows).float(), wanted, reduction="sum")
