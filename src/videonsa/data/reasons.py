"""Why a record is not kept."""

from enum import StrEnum


class Reason(StrEnum):
    """One word per reason; `text` explains it."""

    BAD_ROW = "bad_row"
    UNSUPPORTED = "unsupported"
    REMOTE = "remote"
    BAD_TURNS = "bad_turns"
    EMPTY_TEXT = "empty_text"
    PLACEHOLDERS = "placeholders"
    NO_LOSS = "no_loss"
    DUPLICATE = "duplicate"
    MISSING = "missing"
    BROKEN = "broken"
    TIMEOUT = "timeout"
    BAD_SHAPE = "bad_shape"
    FEW_FRAMES = "few_frames"
    MANY_FRAMES = "many_frames"
    TOO_LONG = "too_long"

    @property
    def text(self) -> str:
        """What it means, in words."""
        return _TEXTS[self]


_TEXTS = {
    Reason.BAD_ROW: "not JSON, or not a conversation",
    Reason.UNSUPPORTED: "asks for what cannot be followed: sound, boxes, a part of a video",
    Reason.REMOTE: "a video or an image at an address, not in a file",
    Reason.BAD_TURNS: "user and assistant do not speak in turn, up to an answer",
    Reason.EMPTY_TEXT: "a question or an answer without text",
    Reason.PLACEHOLDERS: "<video> and <image> in the text do not match what is listed",
    Reason.NO_LOSS: "no turn of the assistant is to be learnt",
    Reason.DUPLICATE: "the same text and files as a record before it",
    Reason.MISSING: "a file that is not there",
    Reason.BROKEN: "a file that cannot be read as a video or an image",
    Reason.TIMEOUT: "a file whose header took too long to read",
    Reason.BAD_SHAPE: "frames that cannot be resized, or not to the pixels that are asked for",
    Reason.FEW_FRAMES: "fewer sampled frames than wanted",
    Reason.MANY_FRAMES: "more sampled frames than wanted",
    Reason.TOO_LONG: "more tokens than wanted, even in the first exchange",
}


_LONGEST = 1000
"""Characters of a detail, which may repeat what stands in a row."""


class DropError(Exception):
    """A record is not kept."""

    def __init__(self, reason: Reason, detail: str, *, num_frames: int | None = None) -> None:
        self.reason = reason
        self.detail = detail if len(detail) <= _LONGEST else f"{detail[:_LONGEST]} ..."
        super().__init__(f"{reason}: {self.detail}")
        self.num_frames = num_frames
        """Sampled frames of its videos, where that is why."""
