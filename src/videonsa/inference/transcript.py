"""`Transcript`: a chat with images and videos, and how much of it a model has read."""

from collections.abc import Iterator, Sequence, Set
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from videonsa.inference.context import Context, EncodedVision, Passage
from videonsa.inference.sampling import GenerationSettings
from videonsa.inference.stop_strings import StopStrings
from videonsa.inference.weighing import Weighed
from videonsa.models.chunks import why_reread
from videonsa.models.recorder.protocol import Recorder
from videonsa.video.chat import OPEN_TURN, Asked, ChatTokenizer, Role, VisionSlot
from videonsa.video.chat_writer import ChatWriter


@dataclass(slots=True, eq=False)
class Part:
    """Tokens of a chat in order, with the images and videos that stand in them."""

    ids: list[int]
    vision: tuple[EncodedVision, ...] = ()
    """Gone once they are read, for whoever holds the part."""


class Mark(NamedTuple):
    """A place in a transcript to go back to."""

    num_tokens: int
    """Up to here, read or not."""
    unread: tuple[Part, ...]
    """What of them was not read when the mark was made."""
    writer: ChatWriter
    seen: frozenset[int]

    def count(self, question: Asked) -> int:
        """Tokens of the prompt, were a question asked from here on."""
        return self.num_tokens + len(self.ids_of(question))

    def ids_of(self, question: Asked) -> list[int]:
        """What a question asked from here on adds to the prompt."""
        writer = copy(self.writer)
        asked = [] if question is OPEN_TURN else writer.add("user", question)
        return [*asked, *writer.begin_answer()]


class Transcript:
    """Parts are added, and read when an answer is wanted, or before.

    Where the method of the context does not allow a prompt to be read in parts, or tokens to be
    read before what follows them, every answer reads all from the beginning.
    """

    def __init__(self, context: Context, tokenizer: ChatTokenizer) -> None:
        self.context = context
        self._writer = ChatWriter(tokenizer)
        self._unread: list[Part] = []
        self._seen: set[int] = set()

    @property
    def why_reread(self) -> str | None:
        """Why every answer reads all from the beginning; None where it need not."""
        return why_reread(self.context.method)

    @property
    def num_read(self) -> int:
        """Tokens that need not be read again."""
        return 0 if self.why_reread else self.context.num_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens so far, without text that is held back."""
        return self.num_read + sum(len(part.ids) for part in self._unread)

    @property
    def role(self) -> Role | None:
        """Of the open turn; None where none is open."""
        return self._writer.role

    @property
    def in_vision(self) -> bool:
        """Whether an image or video is the last that was added."""
        return self._writer.in_vision

    def add(self, role: Role, *parts: str | EncodedVision) -> None:
        """Add to the open turn of that role, or begin one.

        Raises:
            UsageError: vision outside a user's turn, or text that is not valid Unicode.
        """
        written = [
            part if isinstance(part, str) else VisionSlot(part.kind, len(part.features))
            for part in parts
        ]
        vision = tuple(part for part in parts if not isinstance(part, str))
        self._queue(self._writer.add(role, *written), vision)

    def end_turn(self) -> None:
        """End the open turn, if there is one."""
        self._queue(self._writer.close())

    def mark(self) -> Mark:
        """Where the transcript stands."""
        unread = tuple(self._unread)
        return Mark(self.num_tokens, unread, copy(self._writer), frozenset(self._seen))

    def go_back(self, mark: Mark) -> None:
        """Forget what was added since."""
        if self.num_read >= mark.num_tokens:
            self.context.go_back(mark.num_tokens)
            self._unread = []
        else:
            self._unread = list(mark.unread)
        self._writer, self._seen = copy(mark.writer), set(mark.seen)

    def read(self) -> None:
        """Read what was added, unless every answer has to read all."""
        if self._unread and self.why_reread is None:
            self.context.read(self._passage())
            self._let_go()
            self._unread = []

    def read_frames(self, more: EncodedVision, *, start: int) -> None:
        """Read more frames of the video that is open.

        Args:
            more: what they are; its seconds are since the first frame of the video.
            start: position id at which the video begins.
        """
        self.read()
        passage = self.context.frames(
            more.features, more.grid[1:], more.seconds, start=start, kept=more.kept
        )
        self.context.read(passage)

    def answer(
        self,
        *,
        settings: GenerationSettings,
        stop_ids: Set[int],
        strings: StopStrings,
        recorder: Recorder | None = None,
    ) -> Iterator[int]:
        """Let the assistant answer; what it says stays in the transcript, also where it is stopped.

        Where it is stopped because `strings` found one, what was said before that string stays.

        Yields:
            The ids of the answer as they come, the one that ends it included.
        """
        before = self.mark()
        said: list[int] = []
        try:
            self._queue(self._writer.begin_answer())
            if self.why_reread:
                self.context = Context(self.context.model, method=self.context.method)
            asked = len(self._unread)
            steps = self.context.answer(
                self._passage(),
                settings=settings,
                stop_ids=stop_ids,
                seen=self._seen,
                recorder=recorder,
            )
            with closing(steps):  # at its end the context has grown by what was said
                for (token,) in steps:
                    if not said:
                        self._let_go()
                    said.append(token)
                    yield token
        finally:
            if said:
                self._end_answer(said, stop_ids, asked)
                if strings.found is None:
                    self._seen.update(said)
                else:
                    self._cut_answer(said, strings, asked)
            else:
                self.go_back(before)

    def answer_each(
        self, questions: Sequence[str], *, settings: GenerationSettings, stop_ids: Set[int]
    ) -> Iterator[list[int]]:
        """Let the assistant answer questions side by side; nothing of it stays.

        Yields:
            The next id of each answer.
        """
        self.read()
        asked = [self.mark().ids_of(question) for question in questions]
        yield from self.context.answer_each(
            asked, settings=settings, stop_ids=stop_ids, seen=self._seen
        )

    def weigh(self, question: Asked, answer: Sequence[int]) -> Weighed:
        """How probable the ids of an answer are, were a question asked now; nothing stays.

        Raises:
            ModelError: logits that are not finite.
        """
        before = self.mark()
        try:
            asked = [] if question is OPEN_TURN else self._writer.add("user", question)
            self._queue([*asked, *self._writer.begin_answer()])
            if self.why_reread:
                self.context = Context(self.context.model, method=self.context.method)
            return self.context.weigh(self._passage(), answer)
        finally:
            self.go_back(before)

    def _end_answer(self, said: list[int], stop_ids: Set[int], asked: int) -> None:
        """Keep what was said; its last token was not read.

        Args:
            said: the ids of the answer.
            stop_ids: that end one; the format has its own.
            asked: unread parts up to the answer.
        """
        text = said[:-1] if said[-1] in stop_ids else said
        if self.why_reread:
            self._unread = [*self._unread[:asked], Part(text)]
        else:
            self._unread = [Part(said[-1:])] if said[-1] not in stop_ids else []

    def _cut_answer(self, said: list[int], strings: StopStrings, asked: int) -> None:
        """Forget the stop string that ended an answer, and the token that it begins in."""
        kept = said[: strings.tokens_before]
        self._seen.update(kept)
        if self.why_reread:
            self._unread = [*self._unread[:asked], Part(kept)]
        else:
            self.context.go_back(self.context.num_tokens - (len(said) - 1 - len(kept)))
            self._unread = []
        self._queue(self._writer.add("assistant", strings.rest))

    def _queue(self, ids: list[int], vision: tuple[EncodedVision, ...] = ()) -> None:
        self._seen.update(ids)
        if ids:
            self._unread.append(Part(ids, vision))

    def _passage(self) -> Passage:
        """What is not read; the features of images and videos are then those in the passage."""
        ids = [token for part in self._unread for token in part.ids]
        vision = [one for part in self._unread for one in part.vision]
        passage = self.context.passage(ids, vision)
        del vision
        for part, first in zip(self._unread, self._starts(), strict=True):
            part.vision = tuple(self._within(passage, part, first))
        return passage

    def _starts(self) -> Iterator[int]:
        """Where each part begins that is not read."""
        return accumulate((len(part.ids) for part in self._unread[:-1]), initial=0)

    def _within(self, passage: Passage, part: Part, first: int) -> Iterator[EncodedVision]:
        """The images and videos of a part that begins at token `first` of a passage."""
        config, end = self.context.model.config, 0
        for one in part.vision:
            begin = part.ids.index(getattr(config, f"{one.kind}_token_id"), end)
            end = begin + len(one.features)
            yield one._replace(features=passage.embeds[0, first + begin : first + end])

    def _let_go(self) -> None:
        """Features of what is read now are not needed any more, unless it will be read again."""
        if self.why_reread is None:
            for part in self._unread:
                part.vision = ()
