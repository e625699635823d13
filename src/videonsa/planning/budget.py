"""The attention budget of a prompt, and whether it fits the context."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from videonsa.errors import BudgetError, UsageError
from videonsa.models.methods import AttentionMethod
from videonsa.video.sampling import SamplingPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionBudget:
    """How much a vision row attends to, as the paper counts it (section 3)."""

    keys: int
    """K = n * s + w; compressed keys are not counted."""
    gamma: float
    """2K / (L - 1) for a prompt of L tokens: the share of dense causal attention."""

    @property
    def dense_equivalent(self) -> bool:
        """Whether the selected blocks and the window cover as much as dense attention would."""
        return self.gamma >= 1


def attention_budget(
    method: AttentionMethod, *, prompt_tokens: int, tokens_per_frame: int
) -> AttentionBudget | None:
    """K and gamma of a prompt of `prompt_tokens` tokens (paper section 3); None: K is all keys."""
    keys = method.attended_keys(tokens_per_frame)
    if keys is None:
        return None
    return AttentionBudget(keys=keys, gamma=2 * keys / max(prompt_tokens - 1, 1))


def budget_to_dict(budget: AttentionBudget | None) -> dict[str, Any] | None:
    """The budget as JSON keeps it."""
    if budget is None:
        return None
    return asdict(budget) | {"dense_equivalent": budget.dense_equivalent}


def check_new_tokens(max_new_tokens: int) -> None:
    """Refuse a length of the answer that is none: UsageError."""
    if not (type(max_new_tokens) is int and max_new_tokens >= 1):
        raise UsageError(f"max_new_tokens={max_new_tokens!r}: want an int of at least 1")


def check_context(
    frames: SamplingPlan,
    *,
    text_tokens: int,
    max_new_tokens: int,
    context: int,
    video_tokens: int | None = None,
) -> None:
    """Refuse a prompt that leaves no room for the answer.

    Args:
        frames: of the video.
        text_tokens: around it.
        max_new_tokens: longest answer.
        context: of the model.
        video_tokens: that are read of it; None: all.

    Raises:
        BudgetError: says what would fit.

    """
    video_tokens = frames.num_tokens if video_tokens is None else video_tokens
    if video_tokens + text_tokens + max_new_tokens <= context:
        return
    came = f"{video_tokens} video + {text_tokens} text tokens and an answer of {max_new_tokens}"
    room = (context - text_tokens - max_new_tokens) * frames.num_tokens // video_tokens
    patches = room // frames.tokens_per_frame
    if room < 1:
        advice = "shorten the question or lower --max-new-tokens"
    elif patches < 1:
        pixels = frames.height * frames.width // frames.tokens_per_frame
        advice = f"lower --max-pixels to {room * pixels}"
    else:
        fitting = patches * frames.temporal_patch_size
        fps = math.floor(frames.sampled_fps * fitting / frames.num_frames * 1000) / 1000
        rate = f" or --fps to {fps:g}" if fps > 0 else ""
        advice = f"lower --max-frames to {fitting}{rate}, or pass --max-tokens {room}"
    raise BudgetError(f"{came} exceed the context of {context} tokens: {advice}")
