"""Methods that choose keys by a whole prompt read it in one step: text, images and videos alike."""

import pytest
from conversations import MOST, Chat, check_same, difference, image, start, video

from videonsa import load
from videonsa.serving.vllm.checks import METHOD, check_engine, chosen_method

LENGTH = 1024
METHODS = (
    "tri_shape:n_init=8,n_local=32,n_last=8",
    "minference:patterns=none,vertical=16,slash=48",
    "flexprefill:block_size=64,min_budget=64,gamma=0.5",
    "xattention:block_size=64,stride=8,threshold=0.5",
)
CHATS = [
    Chat((video(1, 64), "What flashed?")),
    Chat((image(2), "It was sent to me. " * 20, video(3, 40), image(4), video(5, 24), "How many?")),
    Chat((video(6, 90), "Which shape is blue?")),
    Chat(("Once there was a clip that nobody had seen. " * 30 + "How many?",)),
    Chat((video(7, 51), "and", video(8, 30), "What happens in this video?")),
]


@pytest.fixture(scope="module")
def llm():
    """Steps as long as the longest prompt, and so is the cache of features."""
    return start(
        max_model_len=LENGTH,
        max_num_batched_tokens=LENGTH,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        async_scheduling=False,
        additional_config={METHOD: METHODS[0]},
    )


@pytest.mark.parametrize("text", METHODS)
def test_a_method_of_whole_prompts_answers_as_in_the_engine(llm, text):
    llm.apply_model(lambda model: attend_by(model, text, llm.llm_engine.vllm_config))
    found = check_same(llm, load(dtype="float32", method=text), CHATS)
    dense = load(dtype="float32", method="dense")
    for chat, output in zip(CHATS, found, strict=True):
        assert abs(difference(dense, chat, output)) > 2 * MOST, "attention was dense"


def attend_by(model, text, options):
    """Another method in a model that is loaded, checked as if it was asked for at load."""
    model.method = chosen_method(model.config, {METHOD: text})
    check_engine(options, model.method)
