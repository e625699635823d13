"""Asks the questions of a benchmark; each gives a line of the log, an answer or why there is none.

Questions that follow one another and begin alike share a session: what they share is read once.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import numpy as np

from videonsa.errors import BudgetError, UsageError, VideoNSAError
from videonsa.evals.field.isolated_reading import IsolatedReader
from videonsa.evals.field.question import FieldQuestion, source_text
from videonsa.evals.field.sample_line import LineVision, SampleLine, as_json
from videonsa.inference.answer import Answer, AnswerStream
from videonsa.inference.encoded_clip import EncodedClip
from videonsa.inference.engine import VideoQA
from videonsa.inference.measured import measure_computed
from videonsa.inference.messages import Conversation, session_for, shared_key
from videonsa.inference.sampling import AnswerOptions, GenerationSettings
from videonsa.inference.usage import Usage, usages_of
from videonsa.models.shape import VisionShape
from videonsa.parsing import one_line
from videonsa.video.chat import OPEN_TURN
from videonsa.video.sampling import SamplingSpec

TIME_LIMIT = 600.0
"""Seconds in which a video must be read, and again for an answer."""


class FieldAsker:
    """Asks one model, with one sampling, one question after the other or some side by side."""

    def __init__(
        self,
        qa: VideoQA,
        *,
        sampling: SamplingSpec | None = None,
        batch_size: int = 1,
        time_limit: float = TIME_LIMIT,
        isolated: bool = True,
    ) -> None:
        """Begin with nothing read.

        Args:
            qa: the model.
            sampling: of images and videos; None is the model's own.
            batch_size: how many questions about the same videos are answered side by side.
            time_limit: seconds in which a video must be read, and again for an answer.
            isolated: read videos in another process, so that none can hang or end this one.
        """
        for name, value in (("batch_size", batch_size), ("time_limit", time_limit)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise UsageError(f"{name}={value!r}: want a number above 0")
        self._qa, self._sampling = qa, sampling
        self._batch_size, self._time_limit = int(batch_size), float(time_limit)
        self._read = IsolatedReader(deadline=self._time_limit) if isolated else None
        self._conversation: Conversation | None = None

    def ask(self, questions: Iterable[FieldQuestion]) -> Iterator[SampleLine]:
        """The line of each question, in their order, as soon as it is there."""
        for _, alike in groupby(questions, key=_alike):
            yield from self._ask_alike(alike)

    def close(self) -> None:
        """Forget the videos, and end the process that reads them."""
        if self._read is not None:
            self._read.close()
        self._conversation = None

    def _ask_alike(self, questions: Iterator[FieldQuestion]) -> Iterator[SampleLine]:
        """Lines of questions that differ in their last text only."""
        batch: list[FieldQuestion] = []
        for question in questions:
            batch.append(question)
            if len(batch) == self._batch_size or not self._may_stand_beside(question):
                yield from self._ask_batch(batch)
                batch = []
        if batch:
            yield from self._ask_batch(batch)

    def _may_stand_beside(self, question: FieldQuestion) -> bool:
        """Tokens that are drawn would hang on the other questions; a likelihood is asked alone."""
        draws = (question.options.get("temperature") or 0.0) > 0
        return question.request == "generate" and question.failure is None and not draws

    def _ask_batch(self, batch: Sequence[FieldQuestion]) -> Iterator[SampleLine]:
        if len(batch) > 1:
            try:
                yield from self._ask_beside(batch)
            except VideoNSAError:
                pass  # which of them fails, and why, is found by asking each
            else:
                return
        for question in batch:
            yield self._ask_one(question)

    def _ask_beside(self, batch: Sequence[FieldQuestion]) -> list[SampleLine]:
        begin = time.perf_counter()
        conversations: list[Conversation] = []
        texts: list[str] = []
        for question in batch:
            conversation = self._converse(question)
            is_shared = not texts or conversation.reused == conversation.num_parts - 1
            if conversation.question is OPEN_TURN or not is_shared:
                raise UsageError("questions that do not differ in a last text are asked alone")
            conversations.append(conversation)
            texts.append(conversation.question)
        end = time.monotonic() + self._time_limit
        streams = conversation.session.stream_each(texts, **batch[0].options)
        answers = [self._in_time(stream, end) for stream in streams]
        seconds = (time.perf_counter() - begin) / len(batch)
        return [
            self._answered(question, conversation, answer, seconds)
            for question, conversation, answer in zip(batch, conversations, answers, strict=True)
        ]

    def _ask_one(self, question: FieldQuestion) -> SampleLine:
        begin = time.perf_counter()
        if question.failure is not None:
            return self._failed(question, question.failure)
        try:
            conversation = self._converse(question)
            if question.continuation is not None:
                line = self._weighed(question, conversation)
            else:
                answer = self._answer(question, conversation)
                line = self._answered(question, conversation, answer)
        except VideoNSAError as error:
            line = self._failed(question, one_line(error, most=500))
        return replace(line, seconds=round(time.perf_counter() - begin, 3))

    def _converse(self, question: FieldQuestion) -> Conversation:
        self._conversation = session_for(
            self._qa,
            question.messages,
            sampling=self._sampling,
            read=self._read,
            previous=self._conversation,
        )
        return self._conversation

    def _answer(self, question: FieldQuestion, conversation: Conversation) -> Answer:
        end = time.monotonic() + self._time_limit
        stream = conversation.session.ask(conversation.question, stream=True, **question.options)
        return self._in_time(stream, end)

    def _in_time(self, stream: AnswerStream, end: float) -> Answer:
        """Read a stream to its end, and stop at that time of the clock."""
        for _ in stream:
            if time.monotonic() > end:
                stream.close()
                raise BudgetError(
                    f"not answered in {self._time_limit:g} s: raise time_limit or lower "
                    "max_new_tokens"
                )
        return stream.answer

    def _weighed(self, question: FieldQuestion, conversation: Conversation) -> SampleLine:
        """How probable the continuation of a question is."""
        session, text = conversation.session, str(question.continuation)
        ids = self._qa.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if not ids:
            raise UsageError("the text to weigh came empty: want at least one token")
        (usage,) = usages_of(
            self._qa,
            session.place(),
            [conversation.question],
            settings=self._qa.generation_settings(max_new_tokens=len(ids), temperature=0.0),
            num_read=session.transcript.num_read,
            notes=self._qa.notes,
        )
        if usage.prompt_tokens + len(ids) > usage.context:
            raise BudgetError(
                f"{usage.prompt_tokens} tokens of the prompt and {len(ids)} to weigh exceed the "
                f"context of {usage.context}: take fewer frames or pixels"
            )
        weighed = session.transcript.weigh(conversation.question, ids)
        computed = measure_computed(
            session.transcript.context,
            prompt_tokens=usage.prompt_tokens,
            video_tokens=usage.video_tokens,
            encoded_tokens=usage.encoded_tokens,
        )
        line = self._given(question, conversation, replace(usage, computed=computed))
        return replace(
            line,
            answer=text,
            new_tokens=len(ids),
            log_probability=weighed.log_probability,
            is_greedy=weighed.is_greedy,
            failure=None,
        )

    def _answered(
        self,
        question: FieldQuestion,
        conversation: Conversation,
        answer: Answer,
        seconds: float = 0.0,
    ) -> SampleLine:
        return replace(
            self._given(question, conversation, answer.usage),
            answer=answer.text,
            finish=answer.finish,
            new_tokens=answer.new_tokens,
            failure=None,
            seconds=round(seconds, 3),
        )

    def _given(
        self, question: FieldQuestion, conversation: Conversation, usage: Usage
    ) -> SampleLine:
        """The line of a question up to its answer."""
        ids = np.array(conversation.prompt_ids(), dtype="<i8")
        return replace(
            self._failed(question, "not answered"),
            generation=_stated(usage.generation),
            vision=_vision(question, conversation.session.clips, self._qa.shape.vision),
            prompt_tokens=usage.prompt_tokens,
            video_tokens=usage.video_tokens,
            prompt_sha256=hashlib.sha256(ids.tobytes()).hexdigest(),
            density=None if usage.computed is None else usage.computed.attention,
            notes=tuple(dict.fromkeys((*question.notes, *usage.warnings, *usage.notes))),
            cached_tokens=conversation.reused_tokens,
        )

    def _failed(self, question: FieldQuestion, reason: str) -> SampleLine:
        method = self._qa.model.method
        return SampleLine(
            task=question.task,
            split=question.split,
            doc_id=question.doc_id,
            index=question.index,
            round=question.round,
            request=question.request,
            messages=question.line_messages(),
            generation=_stated(question.options),
            doc=dict(question.doc),
            method=method.full_name,
            method_parameters=as_json(method.parameters()),
            notes=tuple(question.notes),
            failure=reason,
        )


def _alike(question: FieldQuestion) -> tuple[Any, ...]:
    """Equal for questions that may be asked side by side."""
    options = tuple(sorted((name, repr(value)) for name, value in question.options.items()))
    return question.request, options, shared_key(question.messages)


def _vision(
    question: FieldQuestion, clips: Sequence[EncodedClip], shape: VisionShape
) -> tuple[LineVision, ...]:
    """What the model was given of the images and videos of a question, in their order."""
    parts = [part for one in question.messages for part in one.parts if not isinstance(part, str)]
    return tuple(
        LineVision(
            source=source_text(part),
            kind="image" if clip.is_image else "video",
            seconds=clip.times,
            timestamps=clip.position_times,
            grid=clip.grid(shape),
            height=clip.height,
            width=clip.width,
            tokens=math.prod(clip.grid(shape)) // shape.merge_size**2,
            read_tokens=sum(clip.tokens_of_patches(shape)),
        )
        for part, clip in zip(parts, clips, strict=True)
    )


def _stated(options: AnswerOptions | GenerationSettings) -> dict[str, Any]:
    """Options as JSON has them."""
    stated = asdict(options) if isinstance(options, GenerationSettings) else dict(options)
    given: dict[str, Any] = as_json(stated)
    return given
