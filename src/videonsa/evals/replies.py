"""A reply to a question, and what it cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What an answer cost; None where nothing was computed or it cannot be measured."""

    video_tokens: int = 0
    prompt_tokens: int = 0
    """Video and text."""
    attended_keys: int | None = None
    """Keys of a vision token in the selected blocks and the window, if these are not ablated."""
    attention_fraction: float | None = None
    """Share of dense causal attention: 2K / (L - 1), at most 1, and of a method that is neither
    NSA nor dense the pairs that were computed."""
    encode_seconds: float | None = None
    """Rendering and vision tower; once per video, whatever the condition."""
    prefill_seconds: float | None = None
    """Once per video and condition."""
    answer_seconds: float | None = None
    peak_bytes: int | None = None
    """On a GPU of its allocator, else the resident size; the highest since the video began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The text of an answer and what it cost."""

    text: str
    cost: Cost
    likeliest: str | None = None
    """The option that the model would most probably write, where that is asked too."""
