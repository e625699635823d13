"""`read`: a video under a method, with what was chosen of the options, and what it cost."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from videonsa.analysis.asked import AskedQuestion
from videonsa.evals.peak import forget_peak, peak_bytes
from videonsa.evals.scoring import exact_match
from videonsa.inference.context import Context, EncodedVision, split_at_video, until_stop
from videonsa.inference.generation import out_of_memory
from videonsa.inference.measured import measure_computed
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.video.chat import VisionSlot, chat_tokens, check_question

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA

FREE_TOKENS = 32
"""Of an answer to a question without options, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A video that was read under a method."""

    replies: tuple[str, ...]
    """To each question: the option that the model would most probably write, or what it writes."""
    vision_tokens: int
    prompt_tokens: int
    """Of the first question's prompt."""
    prefill_seconds: float
    """Up to where the questions begin; where a method has to see all at once, with the first."""
    peak_bytes: int | None
    attention: float | None
    """Query-key pairs computed for the first question's prompt, as a share of those of dense causal
    attention; compressed keys counted. None where it is not known."""

    def right(self, questions: Sequence[AskedQuestion]) -> list[bool]:
        """Of the questions with a known answer, which reply is right."""
        return [
            exact_match(reply, one.answer)
            for reply, one in zip(self.replies, questions, strict=True)
            if one.answer is not None
        ]


def read(
    qa: "VideoQA",
    vision: EncodedVision,
    questions: Sequence[AskedQuestion],
    *,
    method: AttentionMethod | None = None,
    recorder: Recorder | None = None,
) -> Read:
    """Read a video that is encoded, and answer questions, each as if it were asked alone.

    A method that is not causal, such as the released preset, reads all again for each question; the
    recorder is then told of the first alone.

    Args:
        qa: the model.
        vision: the video, encoded for the same method.
        questions: one at least.
        method: how the model attends; None: as it does.
        recorder: told while the video is read, not of the questions behind it.

    Raises:
        BudgetError: out of memory.
    """
    return _Reader(qa, vision, qa.model.method if method is None else method).read(
        questions, recorder
    )


class _Reader:
    def __init__(self, qa: "VideoQA", vision: EncodedVision, method: AttentionMethod) -> None:
        self._qa, self._vision, self._method = qa, vision, method

    def read(self, questions: Sequence[AskedQuestion], recorder: Recorder | None) -> Read:
        chats = [self._chat(one) for one in questions]
        device = self._qa.model.device
        advice = "ask for shorter videos or smaller frames"
        with out_of_memory(len(chats[0]), device, advice=lambda: advice):
            forget_peak(device)
            begin = time.perf_counter()
            context = Context(self._qa.model, method=self._method)
            end = self._qa.model.config.vision_end_token_id
            head, tail = split_at_video(chats[0], end)
            first = head if self._method.is_causal else chats[0]
            context.read(context.passage(first, [self._vision]), recorder=recorder)
            self._wait()
            seconds = time.perf_counter() - begin
            if self._method.is_causal:
                tails = [split_at_video(one, end)[1] for one in chats]
                replies = self._after(context, questions, tails)
            else:
                replies = [self._at_once(*one) for one in zip(questions, chats, strict=True)]
            peak = peak_bytes(device)
        return Read(
            replies=tuple(replies),
            vision_tokens=len(self._vision.features),
            prompt_tokens=len(head) + len(tail),
            prefill_seconds=seconds,
            peak_bytes=peak,
            attention=self._attention(context, len(head) + len(tail)),
        )

    def _after(
        self, context: Context, questions: Sequence[AskedQuestion], tails: list[list[int]]
    ) -> list[str]:
        """Answers over one prefill: of questions with options together, of others in turn."""
        weighed = [place for place, one in enumerate(questions) if one.options]
        replies = [""] * len(questions)
        if weighed:
            options = [self._options(questions[place]) for place in weighed]
            chosen = context.likeliest_each([tails[place] for place in weighed], options)
            for place, number in zip(weighed, chosen, strict=True):
                replies[place] = questions[place].options[number]
        for place, one in enumerate(questions):
            if not one.options:
                with context.aside():
                    replies[place] = self._written(context, tails[place])
        return replies

    def _at_once(self, question: AskedQuestion, chat: list[int]) -> str:
        context = Context(self._qa.model, method=self._method)
        if not question.options:
            return self._written(context, chat, [self._vision])
        passage = context.passage(chat, [self._vision])
        return question.options[context.likeliest(passage, self._options(question))]

    def _written(
        self, context: Context, ids: list[int], vision: Sequence[EncodedVision] = ()
    ) -> str:
        steps = context.answer(
            context.passage(ids, vision),
            settings=GenerationSettings(max_new_tokens=FREE_TOKENS),
            stop_ids=self._qa.stop_ids,
        )
        return self._qa.decode(until_stop([token for (token,) in steps], self._qa.stop_ids))

    def _options(self, question: AskedQuestion) -> list[list[int]]:
        """The tokens of each option, with the one that ends an answer."""
        tokenizer = self._qa.tokenizer
        return [
            [*tokenizer.encode(option, add_special_tokens=False), tokenizer.eos_token_id]
            for option in question.options
        ]

    def _chat(self, question: AskedQuestion) -> list[int]:
        check_question(question.text)
        slot = VisionSlot(self._vision.kind, len(self._vision.features))
        return chat_tokens(question.text, tokenizer=self._qa.tokenizer, vision=[slot]).ids

    def _attention(self, context: Context, prompt_tokens: int) -> float | None:
        merged = self._qa.shape.vision.merge_size**2
        return measure_computed(
            context,
            prompt_tokens=prompt_tokens,
            video_tokens=len(self._vision.features),
            encoded_tokens=math.prod(self._vision.grid) // merged,
        ).attention

    def _wait(self) -> None:
        """Wait until the GPU is done."""
        if self._qa.model.device.type == "cuda":
            torch.cuda.synchronize(self._qa.model.device)
