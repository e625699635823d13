"""A chat written as ids bit by bit, for a model that reads it bit by bit."""

from dataclasses import dataclass, field

from videonsa.video.chat import (
    IM_END,
    IM_START,
    PADS,
    VISION_END,
    VISION_START,
    ChatTokenizer,
    ChatTurn,
    Role,
    VisionSlot,
    encode_text,
    format_ids,
)


@dataclass(slots=True)
class ChatWriter:
    """Gives the ids of turns as they come; joined, they are what `turn_tokens` gives.

    Text is held back while more of its piece may follow, and so is the end of an image or video:
    more frames may follow the last ones.
    """

    tokenizer: ChatTokenizer
    role: Role | None = None
    """Of the turn that is open."""
    text: str = ""
    """What of it is held back."""
    in_vision: bool = False
    """Whether an image or video is open."""
    _special: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the special tokens: ModelError where the tokenizer lacks one."""
        self._special = format_ids(self.tokenizer)

    def add(self, role: Role, *parts: str | VisionSlot) -> list[int]:
        """Ids of a turn so far; parts go on the open turn where that is of the same role.

        Raises:
            UsageError: vision outside a user's turn, or text that is not valid Unicode.
            ModelError: as for `chat_tokens`.
        """
        ChatTurn(role, parts)  # its checks
        ids: list[int] = []
        if self.role != role:
            ids += self._begin(role)
        for part in parts:
            ids += self._end_vision()
            if isinstance(part, str):
                self.text += part
                continue
            ids += [*self._flush(), self._special[VISION_START]]
            ids += [self._special[PADS[part.kind]]] * part.num_tokens
            self.in_vision = True
        return ids

    def close(self) -> list[int]:
        """Ids up to the end of the open turn; none where no turn is open."""
        if self.role is None:
            return []
        ids = [*self._end_vision(), *self._flush(), self._special[IM_END]]
        self.role = None
        return ids + self._encode("\n")

    def begin_answer(self) -> list[int]:
        """Ids up to where the assistant writes."""
        return self._begin("assistant")

    def _begin(self, role: Role) -> list[int]:
        ids = [*self.close(), self._special[IM_START]]
        self.role, self.text = role, f"{role}\n"
        # What the assistant writes is a piece of its own; other text is one piece with the role.
        return ids + self._flush() if role == "assistant" else ids

    def _end_vision(self) -> list[int]:
        if not self.in_vision:
            return []
        self.in_vision = False
        return [self._special[VISION_END]]

    def _flush(self) -> list[int]:
        text, self.text = self.text, ""
        return self._encode(text) if text else []

    def _encode(self, text: str) -> list[int]:
        return encode_text(text, self.tokenizer, self._special)
