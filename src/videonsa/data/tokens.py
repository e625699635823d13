"""From a record to token ids and labels, cut at whole exchanges where it is too long."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from videonsa.data.records import ImageRef, Record, Text, Turn
from videonsa.errors import BudgetError, UsageError
from videonsa.video.chat import (
    DEFAULT_SYSTEM,
    IGNORED_LABEL,
    VISION_START,
    ChatTokenizer,
    ChatTokens,
    ChatTurn,
    VisionSlot,
    format_ids,
    turn_tokens,
)

Loss = Literal["all", "last"]
_REMEMBERED = 256
"""Most pieces of text in the cache: roles, line breaks, system messages."""


def hash_of_tokenizer(tokenizer: Any) -> str:
    """What tells a tokenizer from others: SHA-256 of its vocabulary and rules."""
    rules: str = tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(rules.encode()).hexdigest()


class TokenCount(NamedTuple):
    """How long a record is after it was cut to fit."""

    num_turns: int
    """Turns of the record that are kept; fewer than it has where it was cut."""
    num_media: int
    """Videos and images that are kept: the first of the record's."""
    vision_tokens: int
    """Tokens that stand for videos and images."""
    text_tokens: int
    """All others, those of the chat format included."""
    vision_begin: int
    """Place of the first vision token; -1 without any."""
    label_tokens: int
    """Tokens of the answers that are to be learnt, as the loss `all` counts them."""

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return self.vision_tokens + self.text_tokens


def count_tokens(
    record: Record,
    *,
    tokenizer: ChatTokenizer,
    vision_token_counts: Sequence[int],
    max_tokens: int | None = None,
    system: str = DEFAULT_SYSTEM,
) -> TokenCount:
    """The counts of what `conversation_tokens` gives, encoding the text only.

    Raises:
        BudgetError: as for `conversation_tokens`.
        UsageError: as for `conversation_tokens`.
        ModelError: as for `conversation_tokens`.

    """
    if len(vision_token_counts) != len(record.media):
        raise UsageError(
            f"record {record.id}: {len(vision_token_counts)} token counts for {len(record.media)} "
            "videos and images: want one for each"
        )
    num_added = _num_added(record)
    turns = _chat_turns(record, counts=[0] * len(record.media), system=system)
    encoded = turn_tokens(turns, tokenizer=tokenizer)
    kept = TokenCount(
        *(1 - num_added, 0, 0), text_tokens=len(next(encoded).ids), vision_begin=-1, label_tokens=0
    )
    begin = format_ids(tokenizer)[VISION_START]
    for asked, answered in zip(encoded, encoded, strict=True):
        num_media = kept.num_media + _num_media(record.turns[kept.num_turns])
        vision_begin = kept.vision_begin
        if num_media and vision_begin < 0:
            vision_begin = kept.text_tokens + asked.ids.index(begin) + 1
        learned = record.turns[kept.num_turns + 1].learned
        longer = TokenCount(
            num_turns=kept.num_turns + 2,
            num_media=num_media,
            vision_tokens=sum(vision_token_counts[:num_media]),
            text_tokens=kept.text_tokens + len(asked.ids) + len(answered.ids),
            vision_begin=vision_begin,
            label_tokens=kept.label_tokens + (_num_labels(answered) if learned else 0),
        )
        if max_tokens is not None and longer.num_tokens > max_tokens:
            if kept.num_turns > 1 - num_added:
                break
            raise BudgetError(
                f"record {record.id}: its first exchange takes {longer.num_tokens} tokens: want at "
                f"most {max_tokens}; raise the limit, or sample fewer or smaller frames"
            )
        kept = longer
    return kept


class ConversationTokens(NamedTuple):
    """A record as ids; `labels` equal the ids where the loss counts, IGNORED_LABEL elsewhere."""

    ids: list[int]
    labels: list[int]
    num_turns: int
    """Turns of the record that are in it; fewer than it has where it was cut."""
    num_media: int
    """Videos and images that are in it: the first of the record's."""


def conversation_tokens(
    record: Record,
    *,
    tokenizer: ChatTokenizer,
    vision_token_counts: Sequence[int],
    max_tokens: int | None = None,
    loss: Loss = "all",
    system: str = DEFAULT_SYSTEM,
) -> ConversationTokens:
    """Encode a record in the Qwen2.5-VL chat format, text always as plain text.

    The loss counts on the assistant's text and on the token that closes it, in turns that are to
    be learnt. A record that is longer than `max_tokens` loses whole exchanges from its end, so no
    vision span is ever cut.

    Args:
        record: what is said.
        tokenizer: one with the tokens of the format.
        vision_token_counts: merged tokens of each of `record.media`.
        max_tokens: most ids; None for no limit.
        loss: `all` counts every turn of the assistant that is to be learnt, `last` the last of
            those that are kept.
        system: the system message of a record that has none.

    Raises:
        BudgetError: the first exchange alone takes more than `max_tokens`.
        UsageError: not one count for each of the media, another `loss`, or text that is not valid
            Unicode.
        ModelError: a tokenizer of another format.

    """
    if loss not in get_args(Loss):
        raise UsageError(f"loss={loss!r}: want one of {', '.join(get_args(Loss))}")
    kept = count_tokens(
        record,
        tokenizer=tokenizer,
        vision_token_counts=vision_token_counts,
        max_tokens=max_tokens,
        system=system,
    )
    turns = _chat_turns(record, counts=vision_token_counts, system=system)
    ids: list[int] = []
    labels: list[int] = []
    num_added = _num_added(record)
    learned = record.learned_turns(kept.num_turns)
    learned = learned if loss == "all" else learned[-1:]
    kept_turns = turns[: kept.num_turns + num_added]
    for index, turn in enumerate(turn_tokens(kept_turns, tokenizer=tokenizer), -num_added):
        ids += turn.ids
        labels += turn.labels if index in learned else [IGNORED_LABEL] * len(turn.labels)
    return ConversationTokens(ids, labels, kept.num_turns, kept.num_media)


def _num_added(record: Record) -> int:
    """Turns that the chat has before the record's: a system message where it has none."""
    return int(record.turns[0].role != "system")


def _num_media(turn: Turn) -> int:
    return sum(not isinstance(part, Text) for part in turn.parts)


def _num_labels(turn: ChatTokens) -> int:
    return sum(label != IGNORED_LABEL for label in turn.labels)


def _chat_turns(record: Record, *, counts: Sequence[int], system: str) -> list[ChatTurn]:
    left = iter(counts)
    turns = [ChatTurn("system", (system,))] if _num_added(record) else []
    for turn in record.turns:
        parts = tuple(
            part.text
            if isinstance(part, Text)
            else VisionSlot("image" if isinstance(part, ImageRef) else "video", next(left))
            for part in turn.parts
        )
        turns.append(ChatTurn(turn.role, parts))
    return turns


class RememberingTokenizer:
    """A tokenizer that encodes a short piece once: most pieces of a chat are always the same."""

    def __init__(self, tokenizer: ChatTokenizer, *, longest: int = 64) -> None:
        self._tokenizer = tokenizer
        self._longest = longest
        self._encoded: dict[str, list[int]] = {}
        self._special: dict[str, int | list[int] | None] = {}

    def encode(
        self, text: str, *, add_special_tokens: bool, split_special_tokens: bool, verbose: bool
    ) -> list[int]:
        """Give the ids of a text; the caller does not change the list."""
        if text in self._encoded:
            return self._encoded[text]
        ids = self._tokenizer.encode(
            text,
            add_special_tokens=add_special_tokens,
            split_special_tokens=split_special_tokens,
            verbose=verbose,
        )
        if len(text) <= self._longest and len(self._encoded) < _REMEMBERED:
            self._encoded[text] = ids
        return ids

    def convert_tokens_to_ids(self, tokens: str) -> int | list[int] | None:
        """Give the id of a token."""
        if tokens not in self._special:
            self._special[tokens] = self._tokenizer.convert_tokens_to_ids(tokens)
        return self._special[tokens]
