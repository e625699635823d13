"""What a question gives back: the text, and what was used to write it."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from videonsa.errors import UsageError
from videonsa.inference.context import Context
from videonsa.inference.generation import TextPieces
from videonsa.inference.measured import measure_computed
from videonsa.inference.stop_strings import StopStrings
from videonsa.inference.transcript import Transcript
from videonsa.inference.usage import Usage
from videonsa.planning.budget import budget_to_dict

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer, complete."""

    text: str
    usage: Usage
    new_tokens: int
    """All that were decoded, those of a stop string too."""
    finish: Literal["stop", "length"]
    """"length": cut at max_new_tokens."""
    stop: str | None
    """The stop string that the answer ends before; None where a token ended it, or its length."""
    decoding: str
    """By which steps, and why: captured ones, or what stands against them."""
    video_seconds: float
    """To read the video and encode its frames, which overlap; the prefill comes after it."""
    first_token_seconds: float
    """From the start of the prefill to the first token, and what a GPU still encodes then."""
    tokens_per_second: float | None
    """Of the tokens after the first; None where there is none."""

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON keeps it."""
        usage = self.usage
        computed = usage.computed and usage.computed.to_dict()
        own = {"budget": budget_to_dict(usage.budget), "computed": computed}
        return asdict(self) | {"usage": asdict(usage) | own}


class AnswerStream:
    """Text pieces as they come; `usage` is known at once, `answer` when the pieces are read.

    What was computed stands in the usage then too.
    """

    def __init__(
        self,
        tokens: Generator[int],
        pieces: TextPieces,
        *,
        usage: Usage,
        stop_ids: frozenset[int],
        strings: StopStrings,
        video_seconds: float,
        context: Callable[[], Context],
        seconds: Sequence[float] | None = None,
    ) -> None:
        self.usage = usage
        self._seconds = seconds  # of each token, where others take time for them too
        self._strings = strings
        self._video_seconds = video_seconds
        self._context = context
        self._answer: Answer | None = None
        self._tokens = tokens
        self._iterator = self._run(tokens, pieces, stop_ids)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not (piece := next(self._iterator)):
            pass
        return piece

    def step(self) -> str | None:
        """The text that one more token brings, empty where it completes none; None at the end."""
        return next(self._iterator, None)

    @property
    def answer(self) -> Answer:
        """The complete answer.

        Raises:
            UsageError: pieces are left to read.

        """
        if self._answer is None:
            raise UsageError("the answer is not complete: read all pieces of the stream first")
        return self._answer

    def close(self) -> None:
        """Stop the answer; what was said so far stays in the conversation."""
        self._iterator.close()
        self._tokens.close()

    def finish(self) -> Answer:
        """Read what is left and give the complete answer."""
        for _ in self:
            pass
        return self.answer

    def _run(
        self, tokens: Generator[int], pieces: TextPieces, stop_ids: frozenset[int]
    ) -> Generator[str]:
        text: list[str] = []
        seconds: list[float] = []  # of the model alone: a slow reader does not count
        last = None
        strings = self._strings
        while strings.found is None and (token := _timed_next(tokens, seconds)) is not None:
            last = token
            piece = "" if token in stop_ids else strings.push(pieces.push(token))
            text.append(piece)
            yield piece
        tokens.close()  # where a stop string was found, there are more
        if rest := strings.push(pieces.flush(), tokens=0) + strings.flush():
            text.append(rest)
            yield rest
        if not seconds:
            raise UsageError(
                "the answer was never begun: another question was asked, or the conversation "
                "changed, before it was read"
            )
        is_stopped = strings.found is not None or last in stop_ids
        if not is_stopped and len(seconds) < self.usage.generation.max_new_tokens:
            raise UsageError(
                f"the answer was stopped after token {len(seconds)}: another question was asked, "
                "or the conversation changed, before it was read to its end"
            )
        taken = seconds if self._seconds is None else self._seconds[: len(seconds)]
        first, later = taken[0], sum(taken[1:])
        context = self._context()
        usage = self.usage
        computed = measure_computed(
            context,
            prompt_tokens=usage.prompt_tokens,
            video_tokens=usage.video_tokens,
            encoded_tokens=usage.encoded_tokens,
        )
        self.usage = replace(usage, computed=computed)
        self._answer = Answer(
            text="".join(text),
            usage=self.usage,
            new_tokens=len(seconds),
            finish="stop" if is_stopped else "length",
            stop=strings.found,
            decoding=context.decoding or "",
            video_seconds=self._video_seconds,
            first_token_seconds=first,
            tokens_per_second=(len(seconds) - 1) / later if later > 0 else None,
        )


def streams_beside(
    qa: "VideoQA",
    transcript: Transcript,
    questions: Sequence[str],
    usages: Sequence[Usage],
    *,
    memory: Callable[[], AbstractContextManager[None]],
) -> tuple[Generator[int], list[AnswerStream]]:
    """Answers that are written side by side: what stops them all, and the stream of each.

    Args:
        qa: the model.
        transcript: what they are about, which stays as it is.
        questions: to ask.
        usages: of them.
        memory: in which the steps are taken.
    """
    settings, stop_ids = usages[0].generation, qa.stop_ids
    steps = _Beside(
        lambda: transcript.answer_each(questions, settings=settings, stop_ids=stop_ids),
        len(questions),
        memory,
    )
    streams = [
        AnswerStream(
            steps.tokens(number, stop_ids),
            TextPieces(qa.decode),
            usage=usage,
            stop_ids=stop_ids,
            strings=StopStrings(settings.stop),
            video_seconds=0.0,
            context=lambda: transcript.context,
            seconds=steps.seconds,
        )
        for number, usage in enumerate(usages)
    ]
    return steps.running, streams


class _Beside:
    """Steps of answers side by side, dealt out to each; whoever lacks a token takes the next."""

    def __init__(
        self,
        begin: Callable[[], Iterator[list[int]]],
        number: int,
        memory: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.seconds: list[float] = []
        """Of each step."""
        self.running = self._run(begin, memory)
        self._given: list[deque[int]] = [deque() for _ in range(number)]
        self._num_open = number

    def tokens(self, number: int, stop_ids: frozenset[int]) -> Generator[int]:
        """The ids of one answer, up to what ends it."""
        given = self._given[number]
        token = None
        try:
            while token not in stop_ids and (given or next(self.running, None) is not None):
                token = given.popleft()
                yield token
        finally:
            self._num_open -= 1
            if not self._num_open:
                self.running.close()

    def _run(
        self,
        begin: Callable[[], Iterator[list[int]]],
        memory: Callable[[], AbstractContextManager[None]],
    ) -> Generator[int]:
        with memory():
            steps = begin()
            start = time.perf_counter()
            for number, ids in enumerate(steps):
                self.seconds.append(time.perf_counter() - start)
                for given, token in zip(self._given, ids, strict=True):
                    given.append(token)
                yield number
                start = time.perf_counter()


def _timed_next(tokens: Iterator[int], seconds: list[float]) -> int | None:
    """The next token, its time appended to `seconds`; None at the end."""
    start = time.perf_counter()
    token = next(tokens, None)
    if token is not None:
        seconds.append(time.perf_counter() - start)
    return token
