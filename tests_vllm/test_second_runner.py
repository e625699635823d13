"""vLLM's second runner of models, which GPUs get: its kernels run in Triton's interpreter."""

import interpreted  # noqa: F401  # before all that imports Triton
import pytest
from conversations import Chat, check_same, mixed_chats, start, video

from videonsa import load


@pytest.fixture(scope="module")
def qa():
    return load(dtype="float32")


@pytest.fixture(scope="module")
def llm():
    found = start(max_num_batched_tokens=64)
    assert found.llm_engine.vllm_config.use_v2_model_runner
    return found


def test_mixed_requests_at_once(llm, qa):
    check_same(llm, qa, mixed_chats(25))


def test_a_hit_of_the_prefix_cache_inside_a_video(llm, qa):
    shared = video(11, 30)
    check_same(llm, qa, [Chat((shared, "How many?"))])
    (found,) = check_same(llm, qa, [Chat((shared, "What happens in this video?"))])
    assert found.num_cached_tokens >= 64
