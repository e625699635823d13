"""Records to ids and labels: where the loss counts, and where a long record is cut."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import videonsa
from videonsa.data.records import ImageRef, Record, Text, Turn, VideoRef
from videonsa.data.tokens import RememberingTokenizer, conversation_tokens, count_tokens
from videonsa.errors import BudgetError, UsageError
from videonsa.video.chat import IGNORED_LABEL, VisionSlot, chat_tokens

TOKENIZER = AutoTokenizer.from_pretrained(Path(videonsa.__file__).parent / "assets/embedded")
START, END, PAD = (
    TOKENIZER.convert_tokens_to_ids(f"<|{name}|>")
    for name in ("vision_start", "vision_end", "video_pad")
)


def record_of(*exchanges: tuple[tuple[object, ...], str], system: str | None = None) -> Record:
    turns = [] if system is None else [Turn(role="system", parts=(Text(system),))]
    for asked, answered in exchanges:
        parts = tuple(Text(part) if isinstance(part, str) else part for part in asked)
        turns += [
            Turn(role="user", parts=parts),
            Turn(role="assistant", parts=(Text(answered),)),
        ]
    return Record(id="r", source="s", turns=tuple(turns))


VIDEO, IMAGE = VideoRef(path="v.mp4"), ImageRef(path="i.png")
LONG = record_of(
    ((VIDEO, "What flashed?"), "red circle"),
    (("And ", IMAGE, " here?"), "a star"),
    (("Then ", VIDEO, VIDEO), "two"),
)
COUNTS = (5, 3, 4, 2)
SYSTEM = Turn(role="system", parts=(Text("Be brief."),))


def learned(labels: list[int]) -> str:
    return TOKENIZER.decode([label for label in labels if label != IGNORED_LABEL])


def test_first_exchange_is_the_prompt_of_inference_with_its_answer() -> None:
    record = record_of(((VIDEO, "What flashed?"), "red circle"))
    ids, labels, num_turns, num_media = conversation_tokens(
        record, tokenizer=TOKENIZER, vision_token_counts=[5]
    )
    asked = chat_tokens(
        "What flashed?",
        tokenizer=TOKENIZER,
        vision=[VisionSlot("video", 5)],
        answer="red circle",
    )
    assert (ids, labels) == asked
    assert (num_turns, num_media) == (2, 1)


def test_vision_stands_where_the_text_has_it() -> None:
    tokens = conversation_tokens(LONG, tokenizer=TOKENIZER, vision_token_counts=COUNTS)
    assert TOKENIZER.decode(tokens.ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{'<|video_pad|>' * 5}<|vision_end|>What flashed?"
        "<|im_end|>\n<|im_start|>assistant\nred circle<|im_end|>\n"
        f"<|im_start|>user\nAnd <|vision_start|>{'<|image_pad|>' * 3}<|vision_end|> here?"
        "<|im_end|>\n<|im_start|>assistant\na star<|im_end|>\n"
        f"<|im_start|>user\nThen <|vision_start|>{'<|video_pad|>' * 4}<|vision_end|>"
        f"<|vision_start|>{'<|video_pad|>' * 2}<|vision_end|>"
        "<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
    )
    assert learned(tokens.labels) == "red circle<|im_end|>a star<|im_end|>two<|im_end|>"


def test_loss_of_the_last_turn_alone() -> None:
    tokens = conversation_tokens(LONG, tokenizer=TOKENIZER, vision_token_counts=COUNTS, loss="last")
    assert learned(tokens.labels) == "two<|im_end|>"
    cut = conversation_tokens(
        LONG,
        tokenizer=TOKENIZER,
        vision_token_counts=COUNTS,
        loss="last",
        max_tokens=len(tokens.ids) - 1,
    )
    assert learned(cut.labels) == "a star<|im_end|>"
    assert (cut.num_turns, cut.num_media) == (4, 2)


def test_turns_that_are_not_to_be_learnt_carry_no_loss() -> None:
    turns = [replace(turn, learned=index != 3) for index, turn in enumerate(LONG.turns)]
    for record in (replace(LONG, turns=tuple(turns)), replace(LONG, turns=(SYSTEM, *turns))):
        tokens = conversation_tokens(record, tokenizer=TOKENIZER, vision_token_counts=COUNTS)
        assert learned(tokens.labels) == "red circle<|im_end|>two<|im_end|>"
    silent = replace(LONG, turns=(*turns[:5], replace(turns[5], learned=False)))
    last = conversation_tokens(silent, tokenizer=TOKENIZER, vision_token_counts=COUNTS, loss="last")
    assert learned(last.labels) == "red circle<|im_end|>", "the last of those that are learnt"


def test_own_system_message_replaces_the_default() -> None:
    record = record_of(((VIDEO, "What?"), "red"), system="Answer in one word.")
    tokens = conversation_tokens(record, tokenizer=TOKENIZER, vision_token_counts=[1])
    text = TOKENIZER.decode(tokens.ids)
    assert text.startswith("<|im_start|>system\nAnswer in one word.<|im_end|>\n<|im_start|>user")
    assert tokens.num_turns == 3


@settings(max_examples=60, deadline=None)
@given(
    exchanges=st.lists(
        st.tuples(
            st.lists(st.sampled_from([VIDEO, IMAGE, "star ", "Wo?\n", ""]), max_size=4),
            st.sampled_from(["", "red", "a long answer about the red star"]),
        ),
        min_size=1,
        max_size=4,
    ),
    counts=st.lists(st.integers(1, 9), min_size=16, max_size=16),
    max_tokens=st.integers(1, 160),
    system=st.none() | st.just("Be brief."),
)
def test_cutting_keeps_whole_exchanges_and_whole_vision_spans(
    exchanges: list[tuple[list[object], str]],
    counts: list[int],
    max_tokens: int,
    system: str | None,
) -> None:
    record = record_of(*exchanges, system=system)
    counts = counts[: len(record.media)]
    whole = conversation_tokens(record, tokenizer=TOKENIZER, vision_token_counts=counts)
    try:
        cut = conversation_tokens(
            record, tokenizer=TOKENIZER, vision_token_counts=counts, max_tokens=max_tokens
        )
    except BudgetError:
        first = record_of(exchanges[0], system=system)
        alone = conversation_tokens(
            first, tokenizer=TOKENIZER, vision_token_counts=counts[: len(first.media)]
        )
        assert len(alone.ids) > max_tokens
        return
    assert len(cut.ids) <= max_tokens
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert cut.labels == whole.labels[: len(cut.ids)]
    spans = TOKENIZER.decode(cut.ids).split("<|vision_start|>")[1:]
    assert [span.split("<|vision_end|>")[0].count("_pad|>") for span in spans] == counts[
        : cut.num_media
    ]
    assert cut.ids.count(START) == cut.ids.count(END) == cut.num_media
    if cut.num_turns < len(record.turns):
        longer = Record(id="r", source="s", turns=record.turns[: cut.num_turns + 2])
        one_more = conversation_tokens(
            longer, tokenizer=TOKENIZER, vision_token_counts=counts[: len(longer.media)]
        )
        assert len(one_more.ids) > max_tokens


@pytest.mark.parametrize("max_tokens", [None, 90, 60])
def test_counting_says_what_encoding_gives(max_tokens: int | None) -> None:
    arguments = {
        "tokenizer": TOKENIZER,
        "vision_token_counts": COUNTS,
        "max_tokens": max_tokens,
    }
    count = count_tokens(LONG, **arguments)
    tokens = conversation_tokens(LONG, **arguments)
    assert count.num_tokens == len(tokens.ids)
    assert (count.num_turns, count.num_media) == (tokens.num_turns, tokens.num_media)
    assert count.vision_tokens == sum(COUNTS[: count.num_media])


def test_remembering_changes_no_token() -> None:
    remembering = RememberingTokenizer(TOKENIZER)
    for _ in range(2):
        assert conversation_tokens(
            LONG, tokenizer=remembering, vision_token_counts=COUNTS
        ) == conversation_tokens(LONG, tokenizer=TOKENIZER, vision_token_counts=COUNTS)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(UsageError, match="2 token counts for 4"):
        conversation_tokens(LONG, tokenizer=TOKENIZER, vision_token_counts=[1, 2])
    with pytest.raises(UsageError, match="loss='first'"):
        conversation_tokens(LONG, tokenizer=TOKENIZER, vision_token_counts=COUNTS, loss="first")
