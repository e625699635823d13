"""A method that is named, blocks of a fixed size, and a cache too small for what comes at once."""

import pytest
from conversations import Chat, check_same, mixed_chats, start, video

from videonsa import load

PAPER_BLOCKS = "nsa:block_size=16,num_selected_blocks=3,window_size=24"


@pytest.fixture(scope="module")
def qa():
    return load(dtype="float32", method=PAPER_BLOCKS)


@pytest.fixture(scope="module")
def llm():
    """Pages of 32 tokens, 640 tokens in all."""
    return start(
        max_model_len=512, max_num_batched_tokens=96, block_size=32, num_gpu_blocks_override=21,
        disable_log_stats=False, additional_config={"videonsa_method": PAPER_BLOCKS},
    )  # fmt: skip


def test_blocks_of_a_fixed_size_are_those_of_the_prompt(llm, qa):
    check_same(llm, qa, [Chat((video(0, 24), "What flashed?"))])


def test_requests_that_were_preempted_and_resume_answer_the_same(llm, qa):
    before = preemptions(llm)
    check_same(llm, qa, mixed_chats(12), max_tokens=70, ignore_eos=True)
    assert preemptions(llm) > before


def preemptions(llm):
    found = [one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions"]
    return sum(found)
