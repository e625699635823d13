"""What the context has room for."""

from typing import Literal, get_args

from videonsa.errors import BudgetError, UsageError

WhenFull = Literal["refuse", "forget"]
"""What to do with frames that exceed the context."""
ROOM_FOR_ANSWER = 512
"""Tokens that frames leave free: for a question and its answer."""


def check_when_full(when_full: object) -> None:
    """Refuse what is none of `WhenFull`: UsageError."""
    if when_full not in get_args(WhenFull):
        raise UsageError(f"when_full={when_full!r}: want one of {', '.join(get_args(WhenFull))}")


def check_room(more: int, *, held: int, base: int, context: int) -> None:
    """Refuse what a session has no room for.

    Args:
        more: tokens that are wanted.
        held: tokens that they follow.
        base: of these, before the conversation.
        context: tokens of the model's context.

    Raises:
        BudgetError: it exceeds the context; says what would make room.
    """
    if held + more <= context:
        return
    advice = (
        "open the video with fewer frames or pixels, or ask for less: a shorter question, a "
        "smaller max_new_tokens"
    )
    if held > base and base + more <= context:
        advice = "ask with fresh=True, which forgets the conversation"
    raise BudgetError(
        f"{more} more tokens (question and answer, or video) after {held} exceed the context "
        f"of {context} tokens: {advice}"
    )


def no_room(num_new: int, *, held: int, kept: int, context: int, advice: str) -> BudgetError:
    """What to raise where frames do not fit.

    Args:
        num_new: their tokens.
        held: tokens that they follow.
        kept: tokens that they leave free.
        context: tokens of the model's context.
        advice: what to do.
    """
    return BudgetError(
        f"{num_new} more video tokens after {held}, with {kept} kept for question and answer, "
        f"exceed the context of {context} tokens: {advice}"
    )
