"""The Qwen2.5-VL chat format, as text and as token ids.

A chat is a list of pieces: special tokens that the format places, and plain text between them.
Each piece is encoded by itself, and text always as plain text, so no question can open or close
a turn or stand for a video.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, NamedTuple, Protocol, get_args

from videonsa.errors import ModelError, UsageError

DEFAULT_SYSTEM = "You are a helpful assistant."
Role = Literal["system", "user", "assistant"]
IGNORED_LABEL = -100
"""The label of tokens without loss, as torch's cross entropy skips it."""

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
PADDING = "<|endoftext|>"
_SPECIAL_TOKENS = (IM_START, IM_END, VISION_START, VISION_END, *PADS.values())


class OpenTurn(Enum):
    """In place of a question."""

    OPEN_TURN = "the user's turn so far asks already"


OPEN_TURN: Final = OpenTurn.OPEN_TURN
"""Asked where a chat ends in an image or a video, or in a text that was said already."""
Asked = str | OpenTurn


class ChatTokenizer(Protocol):
    """What the format needs of a tokenizer; every fast Hugging Face tokenizer has it."""

    def encode(
        self, text: str, *, add_special_tokens: bool, split_special_tokens: bool, verbose: bool
    ) -> list[int]:
        """Give the ids of a text; with split_special_tokens, special tokens in it are text."""

    def convert_tokens_to_ids(self, tokens: str) -> int | list[int] | None:
        """Give the id of a token."""


@dataclass(frozen=True, slots=True)
class VisionSlot:
    """The place of an image or a video in a chat, `num_tokens` merged tokens long."""

    kind: Literal["image", "video"]
    num_tokens: int


class ChatTokens(NamedTuple):
    """A chat as ids; `labels` equal the ids where the loss counts, IGNORED_LABEL elsewhere."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One turn: text, and in the user's turns images and videos where they stand in it."""

    role: Role
    parts: tuple[str | VisionSlot, ...]

    def __post_init__(self) -> None:
        """Refuse another role, and vision outside a user's turn: UsageError."""
        if self.role not in get_args(Role):
            raise UsageError(f"role={self.role!r}: want one of {', '.join(get_args(Role))}")
        if self.role != "user" and any(isinstance(part, VisionSlot) for part in self.parts):
            raise UsageError(
                f"a turn of the {self.role} came with vision: want it in turns of the user"
            )


class _Piece(NamedTuple):
    text: str
    special: bool = False
    learned: bool = False
    """Whether the assistant writes it, so that the loss counts."""
    repeats: int = 1


_ASSISTANT_HEAD = (_Piece(IM_START, special=True), _Piece("assistant\n"))


def chat_text(
    question: str,
    *,
    vision: Sequence[VisionSlot] = (),
    system: str = DEFAULT_SYSTEM,
    history: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
) -> str:
    """Write a chat as text, to be read by people: only `chat_tokens` keeps text and format apart.

    Args:
        question: what the user asks now.
        vision: images and videos; all stand before the text of the first user turn.
        system: the system message.
        history: earlier turns, as pairs of question and answer.
        answer: given, the chat ends with it; otherwise where the assistant is to write.

    Returns:
        The chat, each image or video as its placeholder tokens.

    Raises:
        UsageError: an empty question.

    """
    pieces = _chat(question, vision=vision, system=system, history=history, answer=answer)
    return "".join(piece.text * piece.repeats for piece in pieces)


def chat_tokens(
    question: str,
    *,
    tokenizer: ChatTokenizer,
    vision: Sequence[VisionSlot] = (),
    system: str = DEFAULT_SYSTEM,
    history: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
) -> ChatTokens:
    """Encode a chat (see `chat_text`).

    The loss counts on what the assistant writes: its answers, earlier ones too, each with the
    <|im_end|> that closes it.

    Raises:
        UsageError: an empty question, or text that is not valid Unicode.
        ModelError: a tokenizer without the tokens of the format, or that cannot encode them as
            plain text.

    """
    pieces = _chat(question, vision=vision, system=system, history=history, answer=answer)
    return _encode(pieces, tokenizer)


def turn_tokens(turns: Iterable[ChatTurn], *, tokenizer: ChatTokenizer) -> Iterator[ChatTokens]:
    """Encode turns one by one; joined they are the chat, as the published template writes it.

    The loss counts on the text of the assistant's turns and on the <|im_end|> that closes each.

    Raises:
        UsageError: text that is not valid Unicode.
        ModelError: as for `chat_tokens`.

    """
    for turn in turns:
        yield _encode(_turn(turn), tokenizer)


def check_text(name: str, text: object) -> None:
    """Refuse what is no text, or not valid Unicode: UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"{name} came as {type(text).__name__}; wanted a str; pass the text")
    _check_unicode(text)


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"text came with the character {text[error.start]!r}; wanted valid Unicode; "
            "remove or re-encode it"
        ) from None


def check_question(question: object) -> None:
    """Refuse what is no text, or empty: UsageError."""
    check_text("question", question)
    if not str(question).strip():
        raise UsageError("question came empty; wanted a text; ask something about the video")


def check_asked(question: object, *, is_open: bool) -> None:
    """Refuse what asks nothing: UsageError.

    Args:
        question: a text, or OPEN_TURN.
        is_open: whether there is a turn of the user that asks.
    """
    if question is not OPEN_TURN:
        check_question(question)
    elif not is_open:
        raise UsageError(
            "the open turn was to ask, and nothing was said or shown since the last answer: say or "
            "show something first, or pass a text"
        )


def _encode(pieces: Iterable[_Piece], tokenizer: ChatTokenizer) -> ChatTokens:
    special_ids = format_ids(tokenizer)
    ids: list[int] = []
    labels: list[int] = []
    for piece in pieces:
        if piece.special:
            encoded = [special_ids[piece.text]] * piece.repeats
        else:
            encoded = encode_text(piece.text, tokenizer, special_ids)
        ids += encoded
        labels += encoded if piece.learned else [IGNORED_LABEL] * len(encoded)
    return ChatTokens(ids, labels)


def _chat(
    question: str,
    *,
    vision: Sequence[VisionSlot],
    system: str,
    history: Sequence[tuple[str, str]],
    answer: str | None,
) -> Iterator[_Piece]:
    check_text("system", system)
    check_question(question)
    yield from _turn(ChatTurn("system", (system,)))
    for asked, answered in history:
        yield from _turn(ChatTurn("user", (*vision, asked)))
        yield from _turn(ChatTurn("assistant", (answered,)))
        vision = ()
    yield from _turn(ChatTurn("user", (*vision, question)))
    if answer is None:
        yield from _ASSISTANT_HEAD
    else:
        yield from _turn(ChatTurn("assistant", (answer,)))


def _turn(turn: ChatTurn) -> Iterator[_Piece]:
    learned = turn.role == "assistant"
    if learned:
        # Apart from the answer: a model that answers has read exactly this piece.
        yield from _ASSISTANT_HEAD
        text = ""
    else:
        yield _Piece(IM_START, special=True)
        # One piece with the role where no token stands between: a text that starts with a line
        # break merges with the one before it, as in the published template.
        text = f"{turn.role}\n"
    for part in turn.parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield _Piece(text)
            text = ""
        yield _Piece(VISION_START, special=True)
        yield _Piece(PADS[part.kind], special=True, repeats=part.num_tokens)
        yield _Piece(VISION_END, special=True)
    if text:
        yield _Piece(text, learned=learned)
    yield _Piece(IM_END, special=True, learned=learned)
    yield _Piece("\n")


def format_ids(tokenizer: ChatTokenizer) -> dict[str, int]:
    """The id of each special token of the format.

    Raises:
        ModelError: a tokenizer without one of them.

    """
    return {token: _special_id(tokenizer, token) for token in _SPECIAL_TOKENS}


def _special_id(tokenizer: ChatTokenizer, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(token_id, int):
        raise ModelError(
            f"tokenizer came without {token}; wanted the tokens of the Qwen2.5-VL chat format; "
            "use the tokenizer that belongs to the model"
        )
    return token_id


def encode_text(text: str, tokenizer: ChatTokenizer, special_ids: dict[str, int]) -> list[int]:
    """Encode one piece of plain text; special tokens of the format in it are text.

    Raises:
        UsageError: text that is not valid Unicode.
        ModelError: a tokenizer that gives special tokens for it.

    """
    _check_unicode(text)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    if not set(ids).isdisjoint(special_ids.values()):
        raise ModelError(
            f"{type(tokenizer).__name__} encoded text as special tokens; wanted one that honours "
            "split_special_tokens; use a fast Hugging Face tokenizer"
        )
    return ids
