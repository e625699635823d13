"""`Session`: a conversation about videos, which are read, encoded and prefilled once."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    Self,
    TypedDict,
    Unpack,
    get_args,
    overload,
)

from videonsa.errors import BudgetError, UsageError
from videonsa.inference.answer import Answer, AnswerStream, ClipUsage, Usage
from videonsa.inference.context import Context
from videonsa.inference.encoded_clip import EncodedClip, Video, plan_clip
from videonsa.inference.generation import TextPieces, out_of_memory
from videonsa.inference.live import Frames, LiveVideo, WhenFull
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


ROOM_FOR_ANSWER = 512
"""Tokens that frames leave free: for a question and its answer."""
FORGOTTEN_AT_ONCE = 8
"""One part in so many of a video's frames is forgotten together: keys move, which takes time."""


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
        live: LiveVideo | None = None,
        when_full: WhenFull = "refuse",
    ) -> None:
        """Begin with the system message.

        Args:
            qa: the model.
            system: the system message.
            notes: on what was opened, for every answer.
            advice: asked what to do where memory runs out.
            live: where frames will arrive, of a video that has not begun.
            when_full: what to do with frames that exceed the context: refuse them, or forget the
                oldest of their video but the first.
        """
        check_text("system", system)
        if when_full not in get_args(WhenFull):
            raise UsageError(
                f"when_full={when_full!r}: want one of {', '.join(get_args(WhenFull))}"
            )
        self._qa, self._notes, self._advice = qa, notes, advice
        self._live, self._when_full = live, when_full
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
        self.clips = (*self.clips, replace(clip, features=clip.features[:0].clone()))
        if not self.turns:
            self._base = self._place()

    def extend(self, frames: Any, times: Sequence[float]) -> None:
        """Show the model more frames of the last video, as they arrive.

        Questions and answers leave the conversation before frames follow. A frame whose temporal
        patch is not full waits for the next; a question meanwhile sees it repeated. So an answer is
        the one of the whole video so far.

        Args:
            frames: one or many, as `FrameList` takes them, of any size.
            times: the seconds of each, ascending, and after those so far.

        Raises:
            UsageError: frames or times that cannot follow, or a session whose last video cannot go
                on.
            BudgetError: the context is full, and the session was not told to forget.
        """
        self.check_extends()
        live = self._open_end()
        self.forget()
        before = copy(live)
        try:
            taken = live.take(frames, times)
            if taken is not None:
                self._make_room(live.num_tokens(taken))
                self._watch(live, taken)
                self._base, live.begun = self._place(), True
        except BaseException:  # also where it was interrupted
            self._live = before
            self._go_back(self._base)
            raise

    def check_extends(self) -> None:
        """Refuse, where the method has to see a video at once: UsageError."""
        if (why := self._transcript.why_reread) is not None:
            raise UsageError(f"frames cannot follow: {why}; open the whole video")

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
        mark = self._base.mark
        if mark.num_tokens <= self._transcript.num_read:  # then features need not be kept for it
            self._base = self._base._replace(mark=mark._replace(unread=()))

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
            live=self._live,
            when_full=self._when_full,
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
        session = cls(qa, notes=loaded.notes, live=loaded.live, when_full=loaded.when_full)
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
        place = self._from(fresh=fresh)
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

    def _open_end(self) -> LiveVideo:
        """Where frames of the last video arrive.

        Raises:
            UsageError: there is none that can go on.
        """
        if self._live is not None:
            return self._live
        patch = self._qa.shape.vision.temporal_patch_size
        clip = self._base.clips[-1] if self._base.mark.writer.in_vision else None
        if clip is None or clip.is_image or len(clip.times) % patch:
            why = "what was opened or joined last is no video"
            if clip is not None and not clip.is_image:
                why = f"its {len(clip.times)} frames do not fill their temporal patches"
            raise UsageError(f"frames cannot follow: {why}; begin with open_live")
        size = clip.height, clip.width
        self._live = LiveVideo(self._qa.sampling, size=size, times=clip.position_times)
        return self._live

    def _watch(self, live: LiveVideo, frames: Frames) -> None:
        """Encode and read frames that follow those of the live video, or begin it."""
        clips = self.clips if live.begun else (*self.clips, live.clip())
        with self._memory():
            more = live.encoded(frames, self._qa.encode_frames)
            if not live.begun:
                self._transcript.add("user", more)
            self._transcript.read()
            if live.start is None:
                tokens = ClipUsage.of(clips[-1], self._qa.shape.vision).video_tokens
                tokens = tokens if live.begun else len(more.features)
                live.start = self._transcript.context.start_of_video(tokens)
            if live.begun:
                self._transcript.read_frames(more, start=live.start)
        self.clips = (*clips[:-1], clips[-1].with_frames(frames.times))

    def _from(self, *, fresh: bool) -> _Place:
        """Where a question is asked from; frames that wait are shown, the last one repeated."""
        live = self._live
        waiting = None if live is None else live.repeated()
        if live is None or waiting is None or (self.turns and not fresh):
            return self._base if fresh else self._place()
        if self.turns or self.num_tokens == self._base.mark.num_tokens:
            self.forget()
            self._watch(live, waiting)
        return self._place()

    def _make_room(self, num_new: int) -> None:
        """Let more frames fit the context: refuse them, or forget old ones.

        Raises:
            BudgetError: no room, and no frames to forget.
        """
        context = self._qa.shape.context
        missing = self.num_tokens + num_new + ROOM_FOR_ANSWER - context
        if missing <= 0:
            return
        clip = self.clips[-1] if self.clips else None
        advice = "begin with when_full='forget', fewer pixels or a lower rate"
        if self._when_full == "forget" and clip is not None:
            patches = clip.grid(self._qa.shape.vision)[0]
            per_patch = ClipUsage.of(clip, self._qa.shape.vision).video_tokens // patches
            count = max(-(-missing // per_patch), patches // FORGOTTEN_AT_ONCE)
            if count < patches - 1:
                end = self._transcript.context.num_tokens - (patches - 1 - count) * per_patch
                self._transcript.context.forget(end - count * per_patch, end)
                self.clips = (*self.clips[:-1], clip.without_frames(count, self._qa.shape.vision))
                self._base = self._place()
                return
            advice = "begin with fewer pixels"
        raise BudgetError(
            f"{num_new} more video tokens after {self.num_tokens}, with {ROOM_FOR_ANSWER} kept for "
            f"question and answer, exceed the context of {context} tokens: {advice}"
        )

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
