"""vLLM with the plug-in answers as the engine does, however it cuts, mixes and caches prompts."""

import pytest
from conversations import Chat, check_same, image, mixed_chats, start, step_of, video

from videonsa import load


@pytest.fixture(scope="module")
def qa():
    return load(dtype="float32")


@pytest.fixture(scope="module")
def llm():
    """Steps of 64 tokens: every prompt is cut, and requests meet in steps."""
    return start(max_num_batched_tokens=64)


@pytest.mark.parametrize("step", [5, 16, 64])
def test_frames_that_steps_cut_are_the_blocks_of_the_prompt(llm, qa, step):
    assert qa.model.config.nsa_spec.block_size == "frame"
    llm.reset_prefix_cache()
    with step_of(llm, step):
        check_same(llm, qa, [Chat((video(0, 24), "What flashed?"))])


def test_several_videos_and_images(llm, qa):
    check_same(llm, qa, [Chat((video(1, 9), "and", image(2), "and", video(3, 12), "How many?"))])


def test_64_mixed_requests_at_once(llm, qa):
    found = check_same(llm, qa, mixed_chats(64))
    assert sum(output.num_cached_tokens > 0 for output in found) > 10


def test_a_hit_of_the_prefix_cache_inside_a_video(llm, qa):
    shared = video(11, 30)
    check_same(llm, qa, [Chat((shared, "How many?"))])
    (found,) = check_same(llm, qa, [Chat((shared, "What happens in this video?"))])
    assert found.num_cached_tokens >= 64
