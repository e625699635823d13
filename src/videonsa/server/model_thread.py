"""The one thread that owns the model: it takes questions in order, those that go together at once.

The front runs in an event loop and never touches the model.
"""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from traceback import clear_frames

import torch

from videonsa.errors import BudgetError, VideoError
from videonsa.inference.answer import AnswerStream
from videonsa.inference.encoded_clip import Video
from videonsa.inference.engine import VideoQA
from videonsa.inference.messages import Conversation
from videonsa.machine import ran_out_of_memory
from videonsa.models.chunks import why_reread
from videonsa.server.errors import RefusedRequest
from videonsa.server.frames import FrameReader
from videonsa.server.jobs import Done, Failed, Job, Piece
from videonsa.server.media import stamp_of
from videonsa.server.sessions import Lent, Sessions
from videonsa.server.settings import KeepSettings
from videonsa.video.chat import OPEN_TURN
from videonsa.video.parts import SampledFrame, VideoStream
from videonsa.video.sampling import SamplingSpec

_AGAIN, _COMING = 0.01, 0.05
"""Seconds that questions wait for others: after some went together, and for those on their way."""
_SMOOTHING = 0.2
"""Weight of the last question in the mean time of a question."""


class Cancelled(Exception):
    """Nobody waits for this answer any more."""


class ModelThread:
    """A queue of questions, and the thread that answers them."""

    def __init__(
        self, qa: VideoQA, reader: FrameReader, keep: KeepSettings, *, most_together: int
    ) -> None:
        """Start the thread.

        Args:
            qa: the model, which nothing else uses from now on.
            reader: decodes media.
            keep: what is kept of them.
            most_together: questions about the same that are answered side by side.
        """
        self._reader, self._device = reader, qa.model.device
        self._sessions = Sessions(qa, keep, read=self._open)
        # Of a method that reads all for every question, none go side by side.
        self._most_together = 1 if why_reread(qa.model.method) else most_together
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._num_coming = 0
        self._were_together = False
        self.seconds_each = 0.0
        """Mean time of a question."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._stopping

    @property
    def num_waiting(self) -> int:
        """Questions that wait."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Questions that are being answered."""
        return len(self._running)

    def held(self, tier: str) -> tuple[int, int]:
        """Sessions that are kept in a tier, and their bytes."""
        return self._sessions.held(tier)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """A question is about to be submitted: what it may go with waits a moment for it."""
        with self._changed:
            self._num_coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_coming -= 1
                self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Let a question wait for its turn.

        Raises:
            RefusedRequest: 503, the server stops.
        """
        with self._changed:
            if self._stopping:
                job.release()
                raise RefusedRequest(503, "the server is stopping: ask another one", retry_after=5)
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Nobody waits for the answer: its place is free at once, or after the next token."""
        job.cancelled.set()
        with self._changed:
            if job not in self._waiting:
                return  # the thread lets it go
            self._waiting.remove(job)
        job.release()

    def stop(self) -> None:
        """Take no more questions, answer those there are, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        self._sessions.close()
        self._reader.close()

    def _run(self) -> None:
        with on_device(self._device):
            self._take_turns()

    def _take_turns(self) -> None:
        while jobs := self._next():
            begin = time.perf_counter()
            try:
                self._answer(jobs)
            except Exception as error:
                _let_go(error)
                for job in jobs:
                    job.emit(Failed(error))
            finally:
                self._running = []
                for job in jobs:
                    job.release()
            seconds = (time.perf_counter() - begin) / len(jobs)
            self.seconds_each += _SMOOTHING * (seconds - self.seconds_each)

    def _next(self) -> list[Job]:
        """The question whose turn it is, and those that go with it; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            self._wait_for_more()
            if not self._waiting:
                return []
            first = self._waiting[0]
            jobs = [job for job in self._waiting if job is first or job.goes_with(first)]
            self._running = jobs[: self._most_together]
            for job in self._running:
                self._waiting.remove(job)
            self._were_together = len(self._running) > 1
            return self._running

    def _wait_for_more(self) -> None:
        """Let questions that are about to come go with those that wait.

        Clients that were answered together ask again together, one shortly after the other; without
        a moment's wait the first of them would be answered alone, and the others after it.
        """
        if self._most_together == 1 or self._stopping:
            return
        if self._were_together:
            self._changed.wait_for(lambda: self._stopping, timeout=_AGAIN)
        self._changed.wait_for(lambda: not self._num_coming or self._stopping, timeout=_COMING)

    def _answer(self, jobs: Sequence[Job]) -> None:
        if all(job.cancelled.is_set() for job in jobs):
            return
        try:
            lent = self._lend(jobs[0])
            streams = self._begin(lent.conversation, jobs)
            for job, stream in _pieces(jobs, streams):
                job.emit(
                    Done(stream.answer, lent.came_from, lent.num_cached, len(jobs), job.samplings)
                )
        finally:
            self._sessions.settle()

    def _lend(self, job: Job) -> Lent:
        try:
            return self._sessions.lend(job.messages, job.key)
        except BudgetError as error:
            # What is kept may be what takes the memory.
            is_full = error.__cause__ is not None and ran_out_of_memory(error.__cause__)
            if not is_full or not self._sessions.forget_others():
                raise
        return self._sessions.lend(job.messages, job.key)

    def _begin(self, conversation: Conversation, jobs: Sequence[Job]) -> list[AnswerStream]:
        session, options = conversation.session, jobs[0].options
        if len(jobs) > 1:
            questions = [job.question for job in jobs if job.question is not None]
            return session.stream_each(questions, **options)
        question = OPEN_TURN if conversation.question is None else conversation.question
        recorder = jobs[0].recorder
        return [session.ask(question, stream=True, recorder=recorder, **options)]

    def _open(self, media: Video, sampling: SamplingSpec) -> VideoStream:
        assert isinstance(media, Path)  # media are files by now
        stream = self._reader.open(media, sampling)
        return replace(stream, frames=self._wanted(stream, media))

    def _wanted(self, stream: VideoStream, media: Path) -> Generator[SampledFrame]:
        """The frames, while somebody waits for the answer."""
        with closing(stream.frames):
            for frame in stream.frames:
                if all(job.cancelled.is_set() for job in self._running):
                    raise Cancelled
                yield frame
        # What is kept is found by a digest that was taken before.
        with suppress(FileNotFoundError):  # deleted meanwhile: what was opened is what was meant
            if stamp_of(media) != self._running[0].stamps[media]:
                raise VideoError(f"{media.name} changed while it was read: ask once it is whole")


def _pieces(
    jobs: Sequence[Job], streams: Sequence[AnswerStream]
) -> Iterator[tuple[Job, AnswerStream]]:
    """Hand on what is written, a piece of each in turn; gives those that are complete."""
    running = list(zip(jobs, streams, strict=True))
    try:
        while running:
            for one in tuple(running):
                job, stream = one
                if job.cancelled.is_set():
                    stream.close()
                    running.remove(one)
                elif (piece := stream.step()) is not None:
                    if piece:
                        job.emit(Piece(piece))
                else:
                    running.remove(one)
                    yield one
    finally:
        for _, stream in running:
            stream.close()


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold: it is told later, and they hold what was read."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """What makes a GPU the current one of this thread; nothing for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
