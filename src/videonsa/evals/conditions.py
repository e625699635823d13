"""What an evaluation leaves of the model and of the video."""

from dataclasses import dataclass
from typing import Literal

from videonsa.ops.spec import BRANCHES

GREY = 128
"""Level of every pixel of a video that is there but shows nothing."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Branches of the attention that count, and what is shown of the video."""

    branches: tuple[str, ...] = BRANCHES
    video: Literal["shown", "grey", "absent"] = "shown"
    """ "absent": the question alone, without a vision span."""

    @property
    def knocks_out(self) -> bool:
        """Whether a branch is off, which only NSA has."""
        return self.branches != BRANCHES


def without(branch: str) -> Condition:
    """All branches but one."""
    return Condition(tuple(other for other in BRANCHES if other != branch))
