"""A checkpoint without gates runs as dense."""

from pathlib import Path

from conversations import check_same, mixed_chats, start

from videonsa import load

DENSE = str(Path(__file__).parents[1] / "checkpoints" / "study-dense")


def test_a_dense_checkpoint_answers_as_in_the_engine():
    llm = start(DENSE, max_num_batched_tokens=64)
    check_same(llm, load(DENSE, dtype="float32"), mixed_chats(10))
