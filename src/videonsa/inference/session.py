"""`Session`: a conversation about videos, which are read, encoded and prefilled once."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypedDict, Unpack, overload

from videonsa.errors import BudgetError, UsageError
from videonsa.inference.answer import Answer, AnswerStream, ClipUsage, Usage
from videonsa.inference.context import Context
from videonsa.inference.encoded_clip import EncodedClip, Video, plan_clip
from videonsa.inference.generation import TextPieces, out_of_memory
from videonsa.inference.sampling import GenerationSettings
from videonsa.inference.stop_strings import StopStrings
from videonsa.inference.stored_session import Place, load_session, save_session
from videonsa.inference.transcript import Mark, Transcript
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.stored_cache.contents import Precision
from videonsa.models.stored_cache.save import SavedCache
from videonsa.planning.budget import attention_budget
from videonsa.planning.defaults import SamplingChanges
from videonsa.video.chat import DEFAULT_SYSTEM, Role, check_question, check_text

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA


class AnswerOptions(TypedDict, total=False):
    """The keywords of `Session.ask` that say how tokens are chosen; `VideoQA.ask` explains them."""

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    stop: Sequence[str] | None
    seed: int | None


class Turn(NamedTuple):
    """What was said."""

    role: Role
    text: str


class _Place(NamedTuple):
    """Where a session can go back to."""

    mark: Mark
    turns: tuple[Turn, ...]
    clips: tuple[EncodedClip, ...]


class Session:
    """What a model has seen and said; `VideoQA.open` begins one.

    Questions follow one another in one conversation. With `fresh=True` a question is asked after
    what was opened and joined before the first of them, and the conversation begins anew.
    """

    def __init__(
        self,
        qa: "VideoQA",
        *,
        system: str = DEFAULT_SYSTEM,
        notes: tuple[str, ...] = (),
        advice: Callable[[], str] | None = None,
    ) -> None:
        """Begin with the system message.

        Args:
            qa: the model.
            system: the system message.
            notes: on what was opened, for every answer.
            advice: asked what to do where memory runs out.
        """
        check_text("system", system)
        self._qa, self._notes, self._advice = qa, notes, advice
        self._transcript = Transcript(Context(qa.model), qa.tokenizer)
        self._transcript.add("system", system)
        self.clips: tuple[EncodedClip, ...] = ()
        """The videos and images so far, without their features."""
        self.turns: tuple[Turn, ...] = ()
        """The conversation so far, without the system message."""
        self._base = self._place()
        self._running: Generator[int] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the weights are run, and where a video was not read as asked, one line each."""
        return (*self._notes, *(note for clip in self.clips for note in clip.notes))

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation so far, of videos and text."""
        return self._transcript.num_tokens

    def count(self, question: str) -> int:
        """Tokens of the prompt, were this question asked now."""
        mark = self._transcript.mark()
        return mark.num_tokens + mark.count(question)

    def join(
        self, video: Video, *, fresh: bool = False, **changes: Unpack[SamplingChanges]
    ) -> None:
        """Show the model one more video or image, before the next question.

        Args:
            video: as for `VideoQA.ask`.
            fresh: forget the conversation first: what is joined is then seen by all questions.
            changes: single fields of the model's sampling.

        Raises:
            VideoError: a video that cannot be read.
            UsageError: an argument outside its domain.
            BudgetError: what does not fit the context or the memory.
        """
        sampling = self._qa.wanted_sampling(video, None, changes)
        place = self._base if fresh else self._place()
        self._check_room(plan_clip(video, sampling).num_tokens, place)
        with self._memory():
            clip = self._qa.encode(video, sampling)
        self._stop_running()
        if fresh:
            self.forget()
        place, base = self._place(), self._base
        try:
            self.show(clip)
            self.read()
        except BaseException:  # also where it was interrupted
            self._go_back(place)
            self._base = base
            raise

    def show(self, clip: EncodedClip) -> None:
        """Add a clip that is encoded: it is read with the next question, or by `read`."""
        self._stop_running()
        self._transcript.add("user", clip.vision(self._qa.shape.vision))
        self.clips = (*self.clips, replace(clip, features=clip.features[:0]))
        if not self.turns:
            self._base = self._place()

    def say(self, role: Role, text: str) -> None:
        """Add a turn that was said elsewhere, an earlier question or the answer to it.

        Raises:
            UsageError: another role, or text that is not valid Unicode.
        """
        check_text("text", text)
        self._stop_running()
        self._transcript.add(role, text)
        self.turns = (*self.turns, Turn(role, text))

    def read(self) -> None:
        """Prefill what was added so far."""
        with self._memory():
            self._transcript.read()

    def forget(self) -> None:
        """Forget the conversation: all but what was opened and joined before it."""
        self._stop_running()
        self._go_back(self._base)

    def save(
        self, folder: str | Path, *, precision: Precision = "exact", progress: bool | None = None
    ) -> SavedCache:
        """Write the session into a folder, which appears or is replaced in one step.

        Args:
            folder: to write; one that exists must be empty or hold a session.
            precision: of keys and values: "exact", or "int8" for half the bytes of bfloat16.
            progress: a bar on stderr once it takes over a second; None is on a terminal.

        Raises:
            UsageError: a folder of something else, or too little room. What was there stays.
        """
        self._stop_running()
        return save_session(
            folder,
            self._transcript,
            base=Place(*self._base),
            now=Place(*self._place()),
            notes=self._notes,
            tokenizer=self._qa.tokenizer,
            precision=precision,
            progress=progress,
        )

    @classmethod
    def load(cls, folder: str | Path, qa: "VideoQA", *, progress: bool | None = None) -> Self:
        """Go on with a session that was saved; it answers as the saved one would have.

        Args:
            folder: to read.
            qa: a model with the same weights, method and dtype, on any device.
            progress: a bar on stderr once it takes over a second; None is on a terminal.

        Raises:
            UsageError: a folder of something else, of another model, truncated, damaged or of a
                newer format; says which.
            BudgetError: it does not fit the memory.
        """
        loaded = load_session(folder, qa.model, tokenizer=qa.tokenizer, progress=progress)
        session = cls(qa, notes=loaded.notes)
        session._transcript = loaded.transcript
        now, session._base = (
            _Place(place.mark, tuple(Turn(*turn) for turn in place.turns), place.clips)
            for place in (loaded.now, loaded.base)
        )
        session.turns, session.clips = now.turns, now.clips
        return session

    @overload
    def ask(
        self,
        question: str,
        *,
        fresh: bool = ...,
        stream: Literal[False] = ...,
        recorder: Recorder | None = ...,
        **options: Unpack[AnswerOptions],
    ) -> Answer: ...

    @overload
    def ask(
        self,
        question: str,
        *,
        fresh: bool = ...,
        stream: Literal[True],
        recorder: Recorder | None = ...,
        **options: Unpack[AnswerOptions],
    ) -> AnswerStream: ...

    def ask(
        self,
        question: str,
        *,
        fresh: bool = False,
        stream: bool = False,
        recorder: Recorder | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Answer | AnswerStream:
        """Ask a question in this conversation.

        Args:
            question: what to ask; never empty.
            fresh: forget the conversation first.
            stream: give an `AnswerStream` at once instead of an `Answer` at the end. An answer that
                is not read to its end stays in the conversation as far as it came.
            recorder: collects where the answer looked.
            options: as for `VideoQA.ask`.

        Raises:
            UsageError: an argument outside its domain.
            BudgetError: no room for question and answer.
        """
        check_question(question)
        settings = self._qa.generation_settings(**options)
        self._stop_running()
        place = self._base if fresh else self._place()
        usage = self._usage(question, settings, place)
        self._check_room(
            usage.prompt_tokens - place.mark.num_tokens + settings.max_new_tokens, place
        )
        strings = StopStrings(settings.stop)
        self._running = self._tokens(question, settings, strings, recorder, place)
        answer = AnswerStream(
            self._running,
            TextPieces(self._qa.decode),
            usage=usage,
            stop_ids=self._qa.stop_ids,
            strings=strings,
            video_seconds=sum(clip.seconds for clip in place.clips if not place.turns),
        )
        return answer if stream else answer.finish()

    def _tokens(
        self,
        question: str,
        settings: GenerationSettings,
        strings: StopStrings,
        recorder: Recorder | None,
        place: _Place,
    ) -> Generator[int]:
        """Ask, from a place on; nothing changes before the first token is asked for."""
        self._go_back(place)
        said: list[int] = []
        stop_ids = self._qa.stop_ids
        try:
            self._transcript.add("user", question)
            with self._memory():
                for token in self._transcript.answer(
                    settings=settings, stop_ids=stop_ids, strings=strings, recorder=recorder
                ):
                    said.append(token)
                    yield token
        finally:
            if said:
                text = self._qa.decode(said)
                if strings.found is not None:
                    text = self._qa.decode(said[: strings.tokens_before]) + strings.rest
                turns = Turn("user", question), Turn("assistant", text)
                self.turns = (*self.turns, *turns)
            else:
                self._go_back(place)

    def _usage(self, question: str, settings: GenerationSettings, place: _Place) -> Usage:
        """Of a question that is asked from a place on."""
        method, vision = self._qa.model.method, self._qa.shape.vision
        clips = [ClipUsage.of(clip, vision) for clip in place.clips]
        if not clips:
            raise UsageError("a question before any video: open or join one, or extend the session")
        first = clips[0]
        length = place.mark.num_tokens + place.mark.count(question)
        per_frame = first.video_tokens // first.grid[0]
        notes = (note for clip in place.clips for note in clip.notes)
        return Usage(
            model=self._qa.name,
            attention=method.name,
            times=first.times,
            height=first.height,
            width=first.width,
            grid=first.grid,
            video_tokens=sum(clip.video_tokens for clip in clips),
            prompt_tokens=length,
            cached_tokens=min(self._transcript.num_read, place.mark.num_tokens),
            context=self._qa.shape.context,
            spec=method.parameters(),
            budget=attention_budget(method, prompt_tokens=length, tokens_per_frame=per_frame),
            generation=settings,
            warnings=tuple(warning for clip in place.clips for warning in clip.warnings),
            notes=tuple(dict.fromkeys((*self._notes, *notes))),
            joined=tuple(clips[1:]),
        )

    def _check_room(self, more: int, place: _Place) -> None:
        """Refuse what the context has no room for: BudgetError."""
        context = self._qa.shape.context
        held = place.mark.num_tokens
        if held + more <= context:
            return
        base = self._base.mark.num_tokens
        advice = "open the video with fewer frames or pixels"
        if held > base and base + more <= context:
            advice = "ask with fresh=True, which forgets the conversation"
        raise BudgetError(
            f"{more} more tokens (question and answer, or video) after {held} exceed the context "
            f"of {context} tokens: {advice}"
        )

    def _place(self) -> _Place:
        return _Place(self._transcript.mark(), self.turns, self.clips)

    def _go_back(self, place: _Place) -> None:
        self._transcript.go_back(place.mark)
        self.turns, self.clips = place.turns, place.clips

    def _stop_running(self) -> None:
        """Stop the answer that is still being written."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _memory(self) -> AbstractContextManager[None]:
        return out_of_memory(self.num_tokens, self._qa.model.device, self._advice)
