"""The gates that weigh the three branches of a vision row (paper section 2.3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videonsa.models._hf import guarded_init
from videonsa.ops.spec import BRANCHES

RELEASED_STD = 0.02
"""Standard deviation of the released code's fresh gate weights."""


def branch_gates(
    hidden: Tensor,
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
    *,
    num_heads: int,
    temperature: float,
) -> Tensor:
    """Gates of each row and head, sigmoid(MLP(x) / temperature).

    Args:
        hidden: the layer's normed input, `[B, T, hidden]`.
        first: Linear(hidden, hidden).
        second: Linear(hidden, 3 * num_heads); its outputs are laid out (head, branch).
        num_heads: query heads HQ.
        temperature: divides the logits; 0.3 in the paper.

    Returns:
        `[B, T, HQ, 3]` in (0, 1), branches in the order of `BRANCHES`.
    """
    logits = second(F.gelu(first(hidden))) / temperature
    return torch.sigmoid(logits).view(*hidden.shape[:2], num_heads, len(BRANCHES))


def init_gates(first: nn.Linear, second: nn.Linear, gate_init: str) -> None:
    """Set fresh gates, leaving alone what a checkpoint has filled.

    "half" zeroes the last Linear, so every gate starts at exactly 0.5. "released" draws both
    weights from N(0, 0.02).
    """
    guarded_init.normal_(first.weight, std=RELEASED_STD)
    guarded_init.zeros_(first.bias)
    guarded_init.zeros_(second.bias)
    if gate_init == "released":
        guarded_init.normal_(second.weight, std=RELEASED_STD)
    else:
        guarded_init.zeros_(second.weight)
