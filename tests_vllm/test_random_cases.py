"""Texts, images and videos mixed at random, cut at random, after prefixes that others read."""

import numpy as np
import pytest
from conversations import QUESTIONS, Chat, check_same, image, start, step_of, video

from videonsa import load

PAGE, LONGEST_STEP = 32, 256
VIDEOS = [video(21, 31), video(22, 20, height=84), video(23, 12, width=84), video(24, 45)]
IMAGES = [image(31), image(32, height=56, width=56), image(33, height=168)]
TEXTS = ("Look.", "This is the second of several that I was sent, the first came yesterday.", "So:")


@pytest.fixture(scope="module")
def qa():
    return load(dtype="float32")


@pytest.fixture(scope="module")
def llm():
    return start(max_num_batched_tokens=LONGEST_STEP, block_size=PAGE)


def one_of(rng, things):
    return things[rng.integers(len(things))]


def drawn(rng, beginning=()):
    """A chat of one to four parts and a question, after a beginning."""
    pools = [one_of(rng, (VIDEOS, IMAGES, TEXTS)) for _ in range(rng.integers(4))]
    parts = [one_of(rng, pool) for pool in pools]
    return Chat((*beginning, *parts, one_of(rng, QUESTIONS)))


def ends_inside_a_video(output, token):
    """Whether what was cached of a prompt is a part of a video's tokens."""
    cached = output.num_cached_tokens
    return cached > 0 and output.prompt_token_ids[cached - 1 : cached + 1] == [token, token]


@pytest.mark.parametrize("seed", range(16))
def test_a_random_case_is_answered_as_in_the_engine(llm, qa, seed):
    rng = np.random.default_rng(seed)
    llm.reset_prefix_cache()
    beginning = (TEXTS[0], one_of(rng, VIDEOS))  # each video ends far before a page does
    with step_of(llm, rng.integers(PAGE, LONGEST_STEP)):
        check_same(llm, qa, [drawn(rng, beginning)])
    chats = [drawn(rng, beginning if rng.random() < 0.5 else ()) for _ in range(4)]
    chats.append(drawn(rng, beginning))
    with step_of(llm, rng.integers(17, LONGEST_STEP)):
        found = check_same(llm, qa, [chats[place] for place in rng.permutation(len(chats))])
    assert any(ends_inside_a_video(output, qa.model.config.video_token_id) for output in found)
