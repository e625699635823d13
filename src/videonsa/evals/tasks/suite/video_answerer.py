"""A model that watches videos of the suite: frames are drawn as they are needed, never all."""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from videonsa.evals.conditions import GREY, Condition, under
from videonsa.evals.peak import forget_peak, peak_bytes
from videonsa.evals.replies import Cost, Reply
from videonsa.evals.tasks.suite.answer_styles import prompt_text
from videonsa.evals.tasks.suite.suite_run import CONDITIONS, SuiteRun, check_conditions
from videonsa.inference.context import Context, EncodedVision, split_at_video, until_stop
from videonsa.inference.engine import VideoQA
from videonsa.inference.generation import out_of_memory
from videonsa.inference.measured import measure_computed
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.methods import DENSE, SPARSE, AttentionMethod
from videonsa.planning.budget import attention_budget
from videonsa.rendered.suite import Script, SuiteQuestion, iter_frames
from videonsa.video.chat import VisionSlot, chat_tokens

_FRAMES_PER_CHUNK = 64
_LEAVE_OUT = "take shorter --lengths; the answers so far are kept"
_SPARE_TOKENS = 4
"""Tokens by which an answer may exceed the longest option."""


class _Video(NamedTuple):
    """A video as the tower encoded it."""

    encoded: EncodedVision
    seconds: float
    """It took."""

    @property
    def num_tokens(self) -> int:
        """Merged tokens that are read."""
        return len(self.encoded.features)


class _Answer(NamedTuple):
    """To one question."""

    text: str
    likeliest: str | None
    length: int
    """Tokens that were read after what all questions share."""
    seconds: float


class ModelAnswerer:
    """A loaded model: one prefill per video and condition, then every question after it."""

    def __init__(self, qa: VideoQA, run: SuiteRun) -> None:
        self._qa, self._model, self._run = qa, qa.model, run
        self.method = qa.model.method.with_options(**dict(run.nsa))
        check_conditions(run.conditions, self.method)
        self._last: tuple[Script, bool, _Video] | None = None

    def answers(
        self, script: Script, questions: Sequence[SuiteQuestion], condition: str
    ) -> Iterator[Reply]:
        """See `Answerer`.

        Raises:
            BudgetError: out of memory.
        """
        tokens = math.prod(self._grid(script)) // self._qa.shape.vision.merge_size**2
        with out_of_memory(tokens, self._model.device, advice=lambda: _LEAVE_OUT):
            yield from self._answers(script, questions, CONDITIONS[condition])

    def _answers(
        self, script: Script, questions: Sequence[SuiteQuestion], chosen: Condition
    ) -> Iterator[Reply]:
        if chosen.video == "absent":
            yield from self._answer_blind(questions)
            return
        forget_peak(self._model.device)
        video = self._watch(script, chosen)
        method = under(self.method, chosen)
        if not method.is_causal:  # what follows the video changes how it attends
            for question in questions:
                yield self._answer_at_once(video, question, method)
            return
        yield from self._answer_after_prefill(video, questions, method)

    def _answer_blind(self, questions: Sequence[SuiteQuestion]) -> Iterator[Reply]:
        context = Context(self._model, method=self.method)
        if self._run.scores_both and self.method.is_causal:
            chats = [self._chat(question, video_tokens=None) for question in questions]
            shared = _num_shared(chats)
            context.read(context.passage(chats[0][:shared]))
            for answer in self._answer_each(context, questions, [ids[shared:] for ids in chats]):
                cost = Cost(prompt_tokens=shared + answer.length, answer_seconds=answer.seconds)
                yield Reply(text=answer.text, likeliest=answer.likeliest, cost=cost)
            return
        for question in questions:
            ids = self._chat(question, video_tokens=None)
            start = time.perf_counter()
            likeliest = None
            if self._run.scores_both:
                with context.aside():
                    likeliest = self._likeliest(context, question, ids, ())
            with context.aside():
                text = self._reply(context, question, ids)
            seconds = time.perf_counter() - start
            cost = Cost(prompt_tokens=len(ids), answer_seconds=seconds)
            yield Reply(text=text, likeliest=likeliest, cost=cost)

    def _answer_at_once(
        self, video: _Video, question: SuiteQuestion, method: AttentionMethod
    ) -> Reply:
        ids = self._chat(question, video_tokens=video.num_tokens)
        start = time.perf_counter()
        context = Context(self._model, method=method)
        likeliest = None
        if self._run.scores_both:
            with context.aside():
                likeliest = self._likeliest(context, question, ids, [video.encoded])
        text = self._reply(context, question, ids, [video.encoded])
        seconds = time.perf_counter() - start
        cost = self._cost(video, context, prompt_tokens=len(ids))
        return Reply(text=text, likeliest=likeliest, cost=replace(cost, prefill_seconds=seconds))

    def _answer_after_prefill(
        self, video: _Video, questions: Sequence[SuiteQuestion], method: AttentionMethod
    ) -> Iterator[Reply]:
        start = time.perf_counter()
        end = self._model.config.vision_end_token_id
        ids = self._chat(questions[0], video_tokens=video.num_tokens)
        head, _ = split_at_video(ids, end)
        context = Context(self._model, method=method)
        context.read(context.passage(head, [video.encoded]))
        self._wait()
        prefill = time.perf_counter() - start
        chats = [self._chat(question, video_tokens=1) for question in questions]
        tails = [split_at_video(ids, end)[1] for ids in chats]
        each = self._answer_each if self._run.scores_both else self._answer_in_turn
        for answer in each(context, questions, tails):
            cost = self._cost(video, context, prompt_tokens=len(head) + answer.length)
            cost = replace(cost, prefill_seconds=prefill, answer_seconds=answer.seconds)
            yield Reply(text=answer.text, likeliest=answer.likeliest, cost=cost)

    def _answer_in_turn(
        self, context: Context, questions: Sequence[SuiteQuestion], tails: Sequence[list[int]]
    ) -> Iterator[_Answer]:
        for question, tail in zip(questions, tails, strict=True):
            start = time.perf_counter()
            with context.aside():
                text = self._reply(context, question, tail)
            yield _Answer(text, None, len(tail), time.perf_counter() - start)

    def _answer_each(
        self, context: Context, questions: Sequence[SuiteQuestion], tails: Sequence[list[int]]
    ) -> Iterator[_Answer]:
        """All at once, each as if asked alone: a free answer, and the likeliest option."""
        start = time.perf_counter()
        options = [self._options(question) for question in questions]
        most = [max(map(len, several)) - 1 + _SPARE_TOKENS for several in options]
        settings = GenerationSettings(max_new_tokens=max(most))
        steps = context.answer_each(tails, settings=settings, stop_ids=self._qa.stop_ids)
        said = zip(*steps, strict=True)
        texts = [self._text(ids[:number]) for ids, number in zip(said, most, strict=True)]
        chosen = context.likeliest_each(tails, options)
        seconds = (time.perf_counter() - start) / len(questions)
        for question, text, place, tail in zip(questions, texts, chosen, tails, strict=True):
            yield _Answer(text, question.options[place], len(tail), seconds)

    def _watch(self, script: Script, condition: Condition) -> _Video:
        """The features of a video; those of the last one are kept for its other conditions."""
        grey = condition.video == "grey"
        if self._last is not None and self._last[:2] == (script, grey):
            return self._last[2]
        self._last = None
        start = time.perf_counter()
        with torch.inference_mode():
            kept = self._model.encode_kept(self._frames(script, condition), method=self.method)
        self._wait()
        grid = self._grid(script)
        # Frames come at 2 fps: a second each temporal patch.
        seconds = tuple(index * self._run.time_scale for index in range(grid[0]))
        encoded = EncodedVision("video", kept.features, grid, seconds, kept.places)
        video = _Video(encoded, time.perf_counter() - start)
        self._last = (script, grey, video)
        return video

    def _grid(self, script: Script) -> tuple[int, int, int]:
        vision, size = self._qa.shape.vision, script.spec.frame_size
        patches = script.spec.num_frames // vision.temporal_patch_size
        return patches, size // vision.patch_size, size // vision.patch_size

    def _frames(self, script: Script, condition: Condition) -> Iterator[Tensor]:
        chunks = iter_frames(script, chunk=_FRAMES_PER_CHUNK, device=self._model.device)
        for frames in _ahead(chunks):
            yield torch.full_like(frames, GREY) if condition.video == "grey" else frames

    def _reply(
        self,
        context: Context,
        question: SuiteQuestion,
        ids: list[int],
        vision: Sequence[EncodedVision] = (),
    ) -> str:
        """Read the rest of a prompt, and answer."""
        if self._run.style == "likeliest":
            return self._likeliest(context, question, ids, vision)
        longest = max(map(len, self._options(question)))
        settings = GenerationSettings(max_new_tokens=longest - 1 + _SPARE_TOKENS)
        stop_ids = self._qa.stop_ids
        steps = context.answer(context.passage(ids, vision), settings=settings, stop_ids=stop_ids)
        return self._text([token for (token,) in steps])

    def _likeliest(
        self,
        context: Context,
        question: SuiteQuestion,
        ids: list[int],
        vision: Sequence[EncodedVision],
    ) -> str:
        options = self._options(question)
        return question.options[context.likeliest(context.passage(ids, vision), options)]

    def _options(self, question: SuiteQuestion) -> list[list[int]]:
        """The tokens of each option, with the one that ends an answer."""
        tokenizer = self._qa.tokenizer
        return [
            [*tokenizer.encode(option, add_special_tokens=False), tokenizer.eos_token_id]
            for option in question.options
        ]

    def _text(self, tokens: Sequence[int]) -> str:
        said = until_stop(tokens, self._qa.stop_ids)
        return str(self._qa.tokenizer.decode(said, skip_special_tokens=True))

    def _chat(self, question: SuiteQuestion, *, video_tokens: int | None) -> list[int]:
        slots = [] if video_tokens is None else [VisionSlot("video", video_tokens)]
        text = prompt_text(question, self._run.style)
        return chat_tokens(text, tokenizer=self._qa.tokenizer, vision=slots).ids

    def _cost(self, video: _Video, context: Context, *, prompt_tokens: int) -> Cost:
        method, grid = context.method, video.encoded.grid
        frame_tokens = max(video.num_tokens // grid[0], 1)
        whole = attention_budget(
            self.method, prompt_tokens=prompt_tokens, tokens_per_frame=frame_tokens
        )
        keys = method.attended_keys(frame_tokens)
        fraction: float | None = 1.0
        if method.full_name not in (DENSE, SPARSE):
            fraction = measure_computed(
                context,
                prompt_tokens=prompt_tokens,
                video_tokens=video.num_tokens,
                encoded_tokens=math.prod(grid) // self._qa.shape.vision.merge_size**2,
            ).attention
        elif whole is not None and keys is not None:
            fraction = min(1.0, whole.gamma * keys / max(whole.keys, 1))
        return Cost(
            video_tokens=video.num_tokens,
            prompt_tokens=prompt_tokens,
            attended_keys=keys,
            attention_fraction=fraction,
            encode_seconds=video.seconds,
            peak_bytes=peak_bytes(self._model.device),
        )

    def _wait(self) -> None:
        """Wait until the GPU is done."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)


def _num_shared(chats: Sequence[list[int]]) -> int:
    """Tokens with which all begin; each has one more at least."""
    alike = (len({*tokens}) == 1 for tokens in zip(*(ids[:-1] for ids in chats), strict=False))
    return sum(takewhile(bool, alike))


def _ahead(chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same chunks, each drawn by a thread while the previous one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk
