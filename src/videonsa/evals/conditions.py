"""Which branches of the attention an evaluation ablates, and what it shows of the video."""

from dataclasses import dataclass
from typing import Literal

from videonsa.models.methods import AttentionMethod
from videonsa.ops.spec import BRANCHES

GREY = 128
"""Level of every pixel of a video that is there but shows nothing."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Branches of the attention that are not ablated, and what is shown of the video."""

    branches: tuple[str, ...] = BRANCHES
    video: Literal["shown", "grey", "absent"] = "shown"
    """ "absent": the question alone, without a vision span."""

    @property
    def ablates(self) -> bool:
        """Whether a branch is ablated: only with NSA are there any."""
        return self.branches != BRANCHES


def under(method: AttentionMethod, condition: Condition) -> AttentionMethod:
    """The method with the branches ablated that a condition ablates.

    Raises:
        UsageError: a method without branches under a condition that ablates some.
    """
    return method.with_options(branches=condition.branches) if condition.ablates else method


def ablated(branch: str) -> Condition:
    """One branch ablated."""
    return Condition(tuple(other for other in BRANCHES if other != branch))
