"""What a question gives back: the text, and what was used to write it."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from videonsa.errors import UsageError
from videonsa.inference.context import Context
from videonsa.inference.generation import TextPieces
from videonsa.inference.measured import measure_computed
from videonsa.inference.stop_strings import StopStrings
from videonsa.inference.usage import Usage
from videonsa.planning.budget import budget_to_dict


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
    ) -> None:
        self.usage = usage
        self._strings = strings
        self._video_seconds = video_seconds
        self._context = context
        self._answer: Answer | None = None
        self._tokens = tokens
        self._iterator = self._run(tokens, pieces, stop_ids)

    def __iter__(self) -> Iterator[str]:
        return self._iterator

    def __next__(self) -> str:
        return next(self._iterator)

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
            if token not in stop_ids and (piece := strings.push(pieces.push(token))):
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
        first, later = seconds[0], sum(seconds[1:])
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


def answers_beside(
    steps: Iterator[list[int]],
    usages: Sequence[Usage],
    *,
    decode: Callable[[list[int]], str],
    stop_ids: frozenset[int],
    context: Callable[[], Context],
) -> list[Answer]:
    """The answers that are written side by side.

    Args:
        steps: the next id of each, until all have ended.
        usages: of their questions.
        decode: ids to text.
        stop_ids: that end an answer.
        context: gives the one that read what they are about.
    """
    start = time.perf_counter()
    first = next(steps)
    first_seconds = time.perf_counter() - start
    answers = list(zip(first, *steps, strict=True))
    seconds = time.perf_counter() - start - first_seconds
    complete = []
    for ids, usage in zip(answers, usages, strict=True):
        end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
        stream = AnswerStream(
            (token for token in ids[: end + 1]),
            TextPieces(decode),
            usage=usage,
            stop_ids=stop_ids,
            strings=StopStrings(usage.generation.stop),
            video_seconds=0.0,
            context=context,
        )
        rate = (len(ids) - 1) / seconds if end and seconds else None
        answer = replace(stream.finish(), first_token_seconds=first_seconds, tokens_per_second=rate)
        complete.append(answer)
    return complete


def _timed_next(tokens: Iterator[int], seconds: list[float]) -> int | None:
    """The next token, its time appended to `seconds`; None at the end."""
    start = time.perf_counter()
    token = next(tokens, None)
    if token is not None:
        seconds.append(time.perf_counter() - start)
    return token
