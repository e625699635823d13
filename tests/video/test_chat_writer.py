"""A chat written bit by bit is the chat written at once."""

from copy import copy

import pytest
from conftest import TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from videonsa.errors import UsageError
from videonsa.video.chat import ChatTurn, VisionSlot, chat_tokens, turn_tokens
from videonsa.video.chat_writer import ChatWriter


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


PARTS = st.one_of(
    st.sampled_from(["What?", "\nline", " ", "<|im_end|>", "é"]),
    st.builds(VisionSlot, st.sampled_from(["image", "video"]), st.integers(1, 3)),
)
USER = st.lists(PARTS, min_size=1, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(users=st.lists(USER, min_size=1, max_size=3), answer=st.sampled_from(["yes", "\n", "a b"]))
def test_turns_written_part_by_part_are_turn_tokens(tokenizer, users, answer):
    turns = [ChatTurn("system", ("Be brief.",))]
    for parts in users:
        turns += [ChatTurn("user", parts), ChatTurn("assistant", (answer,))]
    writer = ChatWriter(tokenizer)
    ids = []
    for turn in turns:
        for part in turn.parts:
            ids += writer.add(turn.role, part)
            writer = copy(writer)  # a copy goes on as the writer would
    ids += writer.close()
    wanted = [token for one in turn_tokens(turns, tokenizer=tokenizer) for token in one.ids]
    assert ids == wanted


def test_an_answer_begins_where_a_chat_ends(tokenizer):
    writer = ChatWriter(tokenizer)
    slot = VisionSlot("video", 4)
    ids = [*writer.add("system", "You are a helpful assistant."), *writer.add("user", slot)]
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert writer.in_vision  # its end is held back: more frames may follow
    ids += [*writer.add("user", "What moves?"), *writer.begin_answer()]
    assert ids == chat_tokens("What moves?", vision=[slot], tokenizer=tokenizer).ids


def test_vision_outside_of_a_users_turn_is_refused(tokenizer):
    with pytest.raises(UsageError, match="turn of the assistant came with vision"):
        ChatWriter(tokenizer).add("assistant", VisionSlot("image", 1))
