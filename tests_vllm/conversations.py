"""Conversations, as the engine reads them and as vLLM is asked."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from videonsa.inference.messages import ImagePart, Message, VideoPart, session_for
from videonsa.models.locate import EMBEDDED, locate_model
from videonsa.video.framelist import FrameList

NEW_TOKENS = 8
MOST = 1e-3
"""Of a difference of log-probabilities."""
QUESTIONS = ("What flashed?", "Which shape is blue?", "How many?", "What happens in this video?")


@dataclass(frozen=True)
class Chat:
    """One turn of a user: texts, ('video', frames, seconds) and ('image', picture)."""

    parts: tuple[Any, ...]

    @property
    def has_media(self):
        return not all(isinstance(part, str) for part in self.parts)

    def engine(self, qa):
        """The conversation in the engine, its question not asked yet."""
        shown = [part if isinstance(part, str) else _part(*part) for part in self.parts]
        return session_for(qa, [Message("user", shown)])

    def prompt(self, qa):
        """The same for vLLM, with one token in place of each image and video."""
        ids, data = with_placeholders(qa, self.engine(qa).prompt_ids()), {}
        for part in self.parts:
            if not isinstance(part, str):
                item = part[1] if part[0] == "image" else (part[1], {"times": part[2]})
                data.setdefault(part[0], []).append(item)
        return {"prompt_token_ids": ids} | ({"multi_modal_data": data} if data else {})


def _part(kind, content, times=None):
    if kind == "image":
        return ImagePart(source=content)
    return VideoPart(source=FrameList(content, times=times))


def video(seed, num_frames, *, height=112, width=112):
    """Frames that change, at uneven seconds."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 200, (num_frames, 1, 1, 3))
    grain = rng.integers(0, 55, (num_frames, height, width, 3))
    times = rng.uniform(0.2, 0.9, num_frames).cumsum().round(3)
    return ("video", (levels + grain).astype(np.uint8), (times - times[0]).tolist())


def image(seed, *, height=84, width=140):
    return ("image", np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def with_placeholders(qa, ids):
    config, short = qa.model.config, []
    for token in ids:
        is_vision = token in (config.video_token_id, config.image_token_id)
        if not (is_vision and short and short[-1] == token):
            short.append(token)
    return short


def mixed_chats(count):
    """Chats of one or several videos and images and of text alone; some share a beginning."""
    kinds = [
        lambda n: (video(n % 5, 10 + n % 7), QUESTIONS[n % 4]),
        lambda n: (image(n % 3), QUESTIONS[n % 4]),
        lambda n: (video(n % 3, 9), "and then", image(n), video(n, 4, height=56), QUESTIONS[n % 4]),
        lambda n: (QUESTIONS[n % 4] + " x" * (n % 11),),
        lambda n: ("First this.", image(7), "Then that.", video(8, 24), QUESTIONS[n % 4]),
    ]
    return [Chat(kinds[number % len(kinds)](number)) for number in range(count)]


def start(folder=None, **options):
    """An engine of vLLM, of the embedded model unless told otherwise."""
    from vllm import LLM

    usual = {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 16,
        "enable_prefix_caching": True, "limit_mm_per_prompt": {"video": 4, "image": 4}, "seed": 0,
    }  # fmt: skip
    return LLM(folder or str(locate_model(EMBEDDED)), **(usual | options))


@contextmanager
def step_of(llm, num_tokens):
    """Steps of so many tokens at most, of an engine that was started for more."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    before = scheduler.max_num_scheduled_tokens
    assert num_tokens <= before
    scheduler.max_num_scheduled_tokens = int(num_tokens)
    try:
        yield
    finally:
        scheduler.max_num_scheduled_tokens = before


def weigh(engine, output):
    """How probable the engine finds what vLLM wrote."""
    (said,) = output.outputs
    return engine.session.transcript.weigh(engine.question, list(said.token_ids))


def difference(qa, chat, output):
    """Of the log-probability of what vLLM wrote from the engine's."""
    (said,) = output.outputs
    return said.cumulative_logprob - weigh(chat.engine(qa), output).log_probability


def generate(llm, qa, chats, **options):
    """What vLLM writes, with log-probabilities."""
    from vllm import SamplingParams

    usual = {"temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": 0}
    sampling = SamplingParams(**(usual | options))
    return llm.generate([chat.prompt(qa) for chat in chats], sampling, use_tqdm=False)


def check_same(llm, qa, chats, **options):
    """vLLM writes what the engine writes, and gives it the same probability.

    `options` are those of sampling; with `ignore_eos` the engine weighs, but would have stopped.
    """
    found = generate(llm, qa, chats, **options)
    for chat, output in zip(chats, found, strict=True):
        (said,) = output.outputs
        engine = chat.engine(qa)
        assert list(output.prompt_token_ids) == engine.prompt_ids()
        weighed = weigh(engine, output)
        assert weighed.is_greedy
        assert abs(said.cumulative_logprob - weighed.log_probability) < MOST
        if chat.has_media and not options:  # the engine answers no question before any
            asked = engine.session.ask(engine.question, max_new_tokens=NEW_TOKENS, temperature=0)
            assert said.text == asked.text
    return found
