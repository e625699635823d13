"""What somebody who is asked replies, and what it took."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What an answer took; None where nothing was computed or it cannot be told."""

    video_tokens: int = 0
    prompt_tokens: int = 0
    """Video and text."""
    attended_keys: int | None = None
    """Keys of a vision row: those of the selected blocks and the window that are on."""
    attention_fraction: float | None = None
    """Share of dense causal attention, 2K / (L - 1), at most 1."""
    encode_seconds: float | None = None
    """Rendering and vision tower; once a video, whatever the condition."""
    prefill_seconds: float | None = None
    """Once a video and condition."""
    answer_seconds: float | None = None
    peak_bytes: int | None = None
    """On a GPU of its allocator, else the resident size; the highest since the video began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The text of an answer and what it took."""

    text: str
    cost: Cost
