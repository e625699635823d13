"""Checkpoints without gates, methods that read whole prompts, and what is refused."""

import gc
from pathlib import Path

import pytest
from conversations import Chat, check_same, mixed_chats, start, video

from videonsa import load

DENSE = Path(__file__).parents[1] / "checkpoints" / "study-dense"


def test_a_dense_checkpoint_answers_as_in_the_engine():
    llm = start(str(DENSE), max_num_batched_tokens=64)
    check_same(llm, load(str(DENSE), dtype="float32"), mixed_chats(10))
    del llm
    gc.collect()


TRI_SHAPE = "tri_shape:n_init=8,n_local=32,n_last=8"


def test_a_method_of_prompts_reads_them_whole():
    llm = start(
        max_num_batched_tokens=2048, enable_prefix_caching=False, enable_chunked_prefill=False,
        additional_config={"videonsa_method": TRI_SHAPE},
    )  # fmt: skip
    chats = [Chat((video(seed, 16 + seed), "What flashed?")) for seed in range(6)]
    check_same(llm, load(dtype="float32", method=TRI_SHAPE), chats)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"enforce_eager": False}, "want --enforce-eager"),
        ({"additional_config": {"videonsa_method": "fastv"}}, "tokens that leave"),
        ({"additional_config": {"videonsa_method": "tri_shape"}}, "--no-enable-chunked-prefill"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, line):
    with pytest.raises(Exception, match=line):
        start(**options)
