"""`Session`: a conversation about videos, which are read, encoded and prefilled once."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from videonsa.errors import UsageError
from videonsa.inference.answer import Answer, AnswerStream, streams_beside
from videonsa.inference.arguments import check_idle, check_kind, check_model, check_questions
from videonsa.inference.context import Context
from videonsa.inference.encoded_clip import EncodedClip, Video, plan_clip
from videonsa.inference.generation import TextPieces, out_of_memory
from videonsa.inference.live import Frames, LiveVideo, forget_oldest, live_after
from videonsa.inference.room import ROOM_FOR_ANSWER, WhenFull, check_room, check_when_full, no_room
from videonsa.inference.sampling import AnswerOptions, GenerationSettings
from videonsa.inference.stop_strings import StopStrings
from videonsa.inference.stored_session import Place, Turn, load_session, save_session
from videonsa.inference.transcript import Transcript
from videonsa.inference.usage import Usage, usages_of
from videonsa.models.methods.compression import why_whole_clips
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.stored_cache.contents import Precision
from videonsa.models.stored_cache.save import SavedCache
from videonsa.planning.defaults import SamplingChanges
from videonsa.video.chat import DEFAULT_SYSTEM, OPEN_TURN, Asked, Role, check_asked, check_text
from videonsa.video.sampling import SamplingSpec

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA


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
            when_full: what to do with frames that exceed the context.
        """
        check_text("system", system)
        check_when_full(when_full)
        self._qa, self._notes, self._advice = qa, notes, advice
        self._live, self._when_full = live, when_full
        self._transcript = Transcript(Context(qa.model), qa.tokenizer)
        self._transcript.add("system", system)
        self.clips: tuple[EncodedClip, ...] = ()
        """The videos and images so far, without their features."""
        self.turns: tuple[Turn, ...] = ()
        """The conversation so far, without the system message."""
        self._base = self.place()
        self._running: Generator[int] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the weights are run, and where a video was not read as asked, one line each."""
        return (*self._notes, *(note for clip in self.clips for note in clip.notes))

    @property
    def transcript(self) -> Transcript:
        """The chat, and how much of it is read."""
        return self._transcript

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation so far, of videos and text."""
        return self._transcript.num_tokens

    def count(self, question: str) -> int:
        """Tokens of the prompt, were this question asked now."""
        check_asked(question, is_open=False)
        return self._transcript.mark().count(question)

    def join(
        self,
        video: Video,
        *,
        sampling: SamplingSpec | None = None,
        fresh: bool = False,
        **changes: Unpack[SamplingChanges],
    ) -> None:
        """Show the model one more video or image, before the next question.

        Args:
            video: as for `VideoQA.ask`.
            sampling: which frames; None is the model's own.
            fresh: forget the conversation first: what is joined is then seen by all questions.
            changes: single fields of the sampling.

        Raises:
            VideoError: a video that cannot be read.
            UsageError: an argument outside its domain.
            BudgetError: what does not fit the context or the memory.
        """
        sampling = self._qa.wanted_sampling(video, sampling, changes)
        self._stop_running()
        place = self._base if fresh else self.place()
        self._check_room(self._qa.tokens_of(plan_clip(video, sampling).grid), place)
        with self._memory():
            clip = self._qa.encode(video, sampling)
        if fresh:
            self.forget_conversation()
        place, base, live = self.place(), self._base, self._live
        try:
            self.show(clip)
            del clip  # its features are freed once they are in the embedded prompt
            self.read()
        except BaseException:  # also where it was interrupted
            self._go_back(place)
            self._base, self._live = base, live
            raise

    def show(self, clip: EncodedClip) -> None:
        """Add a clip that is encoded: it is read with the next question, or by `read`."""
        self._stop_running()
        self._from(fresh=False)
        self._transcript.add("user", clip.vision(self._qa.shape.vision))
        self.clips = (*self.clips, clip.without_features())
        if not self.turns:
            self._base = self.place()
            if self._live is not None and self._live.last_time is not None:
                self._live = None  # what was shown is the last video now

    def extend(self, frames: Any, times: Sequence[float] | float) -> None:
        """Show the model more frames of the last video, as they arrive.

        Questions and answers leave the conversation before frames follow. A frame whose temporal
        patch is not full waits for the next; a question meanwhile sees it repeated. So an answer is
        the one of the whole video so far.

        Args:
            frames: one, or many as `FrameList` takes them, of any size.
            times: the seconds of each, ascending, and after those so far; of one, a number too.

        Raises:
            UsageError: frames or times that cannot follow, or a last video that cannot go on.
            BudgetError: the context is full, and the session was not told to forget.
        """
        self.check_extends()
        live = self._open_end()
        self.forget_conversation()
        before = copy(live)
        try:
            taken = live.take(frames, times)
            if taken is not None:
                self._make_room(self._qa.tokens_of(live.grid(taken)), ROOM_FOR_ANSWER)
                self._watch(live, taken)
                self._base, live.begun = self.place(), True
        except BaseException:  # also where it was interrupted
            self._live = before
            self._go_back(self._base)
            raise

    def check_extends(self) -> None:
        """Refuse, where the method has to see a video at once: UsageError."""
        if why := self._transcript.why_reread or why_whole_clips(self._qa.model.method):
            raise UsageError(f"frames cannot follow: {why}; open the whole video")

    def say(self, role: Role, text: str) -> None:
        """Add a turn that was said elsewhere, an earlier question or the answer to it.

        Raises:
            UsageError: another role, or text that is not valid Unicode.
        """
        check_text("text", text)
        self._stop_running()
        self._from(fresh=False)
        self._transcript.add(role, text)
        self.turns = (*self.turns, Turn(role, text))

    def read(self) -> None:
        """Prefill what was added so far."""
        with self._memory():
            self._transcript.read()
            self._transcript.context.get_ready(max_new_tokens=ROOM_FOR_ANSWER)

    def end_turn(self) -> None:
        """End the turn so far: what follows begins another, also where it is of the same role."""
        self._stop_running()
        self._transcript.end_turn()

    def place(self) -> Place:
        """Where the session is, for `return_to`."""
        return Place(self._transcript.mark(), self.turns, self.clips)

    def return_to(self, place: Place) -> None:
        """Forget what was shown and said after a place; those after it are places no more."""
        self._stop_running()
        self._live = self._live if place.clips == self.clips else None
        self._go_back(place)
        self._base = min(self._base, place, key=lambda one: one.mark.num_tokens)

    def forget_conversation(self) -> None:
        """Forget all but what was opened and joined before the conversation."""
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
            base=self._base,
            now=self.place(),
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
        check_model(qa)
        loaded = load_session(folder, qa.model, tokenizer=qa.tokenizer, progress=progress)
        session = cls(qa, notes=loaded.notes, live=loaded.live, when_full=loaded.when_full)
        session._transcript, session._base = loaded.transcript, loaded.base
        session.turns, session.clips = loaded.now.turns, loaded.now.clips
        return session

    @overload
    def ask(
        self,
        question: Asked,
        *,
        fresh: bool = ...,
        stream: Literal[False] = ...,
        recorder: Recorder | None = ...,
        **options: Unpack[AnswerOptions],
    ) -> Answer: ...

    @overload
    def ask(
        self,
        question: Asked,
        *,
        fresh: bool = ...,
        stream: Literal[True],
        recorder: Recorder | None = ...,
        **options: Unpack[AnswerOptions],
    ) -> AnswerStream: ...

    def ask(
        self,
        question: Asked,
        *,
        fresh: bool = False,
        stream: bool = False,
        recorder: Recorder | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Answer | AnswerStream:
        """Ask a question in this conversation.

        Args:
            question: what to ask, never empty; or OPEN_TURN: what was said and shown last asks.
            fresh: forget the conversation first.
            stream: give an `AnswerStream` at once instead of an `Answer` at the end. An answer that
                is not read to its end stays in the conversation as far as it came.
            recorder: collects where the answer looked.
            options: as for `VideoQA.ask`.

        Raises:
            UsageError: an argument outside its domain.
            BudgetError: no room for question and answer.
        """
        check_asked(question, is_open=not fresh and self._transcript.role == "user")
        check_kind("recorder", recorder, Recorder)
        place, (usage,) = self._begin([question], options, fresh=fresh)
        strings = StopStrings(usage.generation.stop)
        self._running = self._tokens(question, usage.generation, strings, recorder, place)
        answer = AnswerStream(
            self._running,
            TextPieces(self._qa.decode),
            usage=usage,
            stop_ids=self._qa.stop_ids,
            strings=strings,
            video_seconds=sum(clip.seconds for clip in place.clips if not place.turns),
            context=lambda: self._transcript.context,
        )
        return answer if stream else answer.finish()

    def ask_each(
        self, questions: Sequence[str], *, fresh: bool = False, **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Ask several questions side by side, each as if it were the next; none of them stays.

        They are read and answered together over one cache, of which nothing is copied, unless the
        answers' `decoding` says why not. Where tokens are drawn, a seed repeats all the answers to
        the same questions in the same order; a question asked alone may draw others.

        Args:
            questions: what to ask; none of them empty.
            fresh: forget the conversation first.
            options: as for `VideoQA.ask`.

        Raises:
            UsageError: an argument outside its domain.
            BudgetError: no room for a question and its answer.
        """
        check_questions(questions)
        if self._transcript.why_reread is None:
            answers = self.stream_each(questions, fresh=fresh, **options)
            for _ in self._running or ():
                pass  # how they were decoded is known at the end of all
            return [answer.finish() for answer in answers]
        place, _ = self._begin(questions, options, fresh=fresh)
        self._go_back(place)
        return [self._ask_aside(question, place, options) for question in questions]

    def stream_each(
        self, questions: Sequence[str], *, fresh: bool = False, **options: Unpack[AnswerOptions]
    ) -> list[AnswerStream]:
        """As `ask_each`, with the answers as they come: reading one on leads all on.

        Raises:
            UsageError: also a method by which every answer reads all from the beginning.
        """
        check_questions(questions)
        if why := self._transcript.why_reread:
            raise UsageError(f"answers cannot come side by side: {why}; ask one after the other")
        place, usages = self._begin(questions, options, fresh=fresh)
        self._go_back(place)
        self._running, answers = streams_beside(
            self._qa, self._transcript, questions, usages, memory=self._memory
        )
        return answers

    def _ask_aside(self, question: str, place: Place, options: AnswerOptions) -> Answer:
        try:
            return self.ask(question, **options)
        finally:
            self._go_back(place)

    def _tokens(
        self,
        question: Asked,
        settings: GenerationSettings,
        strings: StopStrings,
        recorder: Recorder | None,
        place: Place,
    ) -> Generator[int]:
        """Ask, from a place on; nothing changes before the first token is asked for."""
        self._go_back(place)
        said: list[int] = []
        stop_ids = self._qa.stop_ids
        try:
            self._transcript.add("user", *([] if question is OPEN_TURN else [question]))
            with self._memory():
                for token in self._transcript.answer(
                    settings=settings, stop_ids=stop_ids, strings=strings, recorder=recorder
                ):
                    said.append(token)
                    yield token
        finally:
            if said:
                text = strings.text_of(said, self._qa.decode)
                asked = [] if question is OPEN_TURN else [Turn("user", question)]
                self.turns = (*self.turns, *asked, Turn("assistant", text))
            else:
                self._go_back(place)

    def _open_end(self) -> LiveVideo:
        """Where frames of the last video arrive: UsageError where there is none that can go on."""
        if self._live is None:
            is_open = self._base.mark.writer.in_vision
            self._live = live_after(self._base.clips[-1] if is_open else None, self._qa.sampling)
        return self._live

    def _watch(self, live: LiveVideo, frames: Frames) -> None:
        """Encode and read frames that follow those of the live video, or begin it."""
        try:
            with self._memory():
                self.clips = live.read(frames, self._transcript, self.clips, self._qa.encode_frames)
        except BaseException:  # also where it was interrupted
            self._go_back(self._base)
            raise

    def _from(
        self, questions: Sequence[Asked] = (), max_new_tokens: int = 0, *, fresh: bool
    ) -> Place:
        """Where questions are asked from: frames that wait are shown, the last one repeated.

        A session that forgets frames leaves room for the questions and their answers.
        """
        place, live = self._base if fresh else self.place(), self._live
        if live is None or place.turns:
            return place
        waiting = live.repeated()
        if waiting is None and self._when_full == "refuse":
            return place
        self.forget_conversation()
        if self._when_full == "forget":
            asked = [len(self._base.mark.ids_of(question)) for question in questions]
            num_new = 0 if waiting is None else self._qa.tokens_of(live.grid(waiting))
            self._make_room(num_new, max(asked, default=0) + max_new_tokens)
        if waiting is not None:
            self._watch(live, waiting)
        return self.place()

    def _make_room(self, num_new: int, kept: int) -> None:
        """Let more frames fit the context beside tokens kept free: refuse, or forget old frames.

        Raises:
            BudgetError: no room, and no frames to forget.
        """
        context = self._qa.shape.context
        missing = self.num_tokens + num_new + kept - context
        if missing <= 0:
            return
        advice = "begin with when_full='forget', fewer pixels or a lower rate"
        if self._when_full == "forget" and self.clips:
            held, vision = self._transcript.context, self._qa.shape.vision
            with self._memory():
                left = forget_oldest(held, self.clips[-1], missing, vision)
            if left is not None:
                self.clips = (*self.clips[:-1], left)
                self._base = self.place()
                return
            advice = "begin with fewer pixels"
        raise no_room(num_new, held=self.num_tokens, kept=kept, context=context, advice=advice)

    def _begin(
        self, questions: Sequence[Asked], options: AnswerOptions, *, fresh: bool
    ) -> tuple[Place, list[Usage]]:
        """From where questions are asked, and how: BudgetError where they have no room."""
        settings = self._qa.generation_settings(**options)
        self._stop_running()
        place = self._from(questions, settings.max_new_tokens, fresh=fresh)
        num_read, notes = self._transcript.num_read, self._notes
        usages = usages_of(
            self._qa, place, questions, settings=settings, num_read=num_read, notes=notes
        )
        longest = max(usage.prompt_tokens for usage in usages) - place.mark.num_tokens
        self._check_room(longest + settings.max_new_tokens, place)
        return place, usages

    def _check_room(self, more: int, place: Place) -> None:
        """Refuse what the context has no room for: BudgetError."""
        held, base = place.mark.num_tokens, self._base.mark.num_tokens
        check_room(more, held=held, base=base, context=self._qa.shape.context)

    def _go_back(self, place: Place) -> None:
        self._transcript.go_back(place.mark)
        self.turns, self.clips = place.turns, place.clips

    def _stop_running(self) -> None:
        """Stop the answer that is still being written."""
        check_idle(self._running)
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _memory(self) -> AbstractContextManager[None]:
        return out_of_memory(self.num_tokens, self._qa.model.device, self._advice)
