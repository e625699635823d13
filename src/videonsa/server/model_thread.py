"""The one thread that owns the model: it takes questions in order, those that go together at once.

The front runs in an event loop and never touches the model.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from videonsa.inference.answer import AnswerStream
from videonsa.inference.engine import VideoQA
from videonsa.server.errors import RefusedRequest
from videonsa.server.frames import FrameReader
from videonsa.server.jobs import Done, Failed, Job, Piece
from videonsa.server.sessions import Kept, Sessions
from videonsa.video.parts import SampledFrame, VideoStream
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import VideoLike

_SMOOTHING = 0.2
"""Weight of the last question in the mean time of a question."""


class Cancelled(Exception):
    """Nobody waits for this answer any more."""


class ModelThread:
    """A queue of questions, and the thread that answers them."""

    def __init__(self, qa: VideoQA, reader: FrameReader, *, most_together: int) -> None:
        """Start the thread.

        Args:
            qa: the model, which nothing else uses from now on.
            reader: decodes media.
            most_together: questions about the same that are answered side by side.
        """
        self._reader = reader
        self._sessions = Sessions(qa, read=self._open)
        self._most_together = most_together
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._stopping = False
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

    def submit(self, job: Job) -> None:
        """Let a question wait for its turn.

        Raises:
            RefusedRequest: 503, the server stops.
        """
        with self._changed:
            if self._stopping:
                raise RefusedRequest(503, "the server is stopping: ask another one", retry_after=5)
            self._waiting.append(job)
            self._changed.notify()

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
            self._changed.notify()
        self._thread.join()
        self._reader.close()

    def _run(self) -> None:
        while jobs := self._next():
            begin = time.perf_counter()
            try:
                self._answer(jobs)
            except Exception as error:
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
            if not self._waiting:
                return []
            first = self._waiting[0]
            jobs = [job for job in self._waiting if job is first or job.goes_with(first)]
            self._running = jobs[: self._most_together]
            for job in self._running:
                self._waiting.remove(job)
            return self._running

    def _answer(self, jobs: Sequence[Job]) -> None:
        first = jobs[0]
        if all(job.cancelled.is_set() for job in jobs):
            raise Cancelled
        kept, num_cached = self._sessions.with_parts(first.system, first.parts, first.media)
        if len(jobs) == 1:
            self._answer_one(kept, first, num_cached=num_cached)
            return
        questions = [job.question for job in jobs]
        answers = kept.session.ask_each(questions, **first.options)
        for job, answer in zip(jobs, answers, strict=True):
            job.emit(Piece(answer.text))
            job.emit(Done(answer, num_cached, len(jobs), job.parts))

    def _answer_one(self, kept: Kept, job: Job, *, num_cached: int) -> None:
        try:
            stream = kept.session.ask(job.question, stream=True, **job.options)
            for piece in _until_cancelled(stream, lambda: job.cancelled.is_set()):
                job.emit(Piece(piece))
            job.emit(Done(stream.answer, num_cached, 1, job.parts))
        finally:
            kept.note_turns()

    def _open(self, media: VideoLike, sampling: SamplingSpec) -> VideoStream:
        stream = self._reader.open(media, sampling)
        return replace(stream, frames=self._wanted(stream))

    def _wanted(self, stream: VideoStream) -> Generator[SampledFrame]:
        """The frames, while somebody waits for the answer."""
        with closing(stream.frames):
            for frame in stream.frames:
                if all(job.cancelled.is_set() for job in self._running):
                    raise Cancelled
                yield frame


def _until_cancelled(stream: AnswerStream, is_cancelled: Callable[[], bool]) -> Iterator[str]:
    for piece in stream:
        if is_cancelled():
            stream.close()
            raise Cancelled
        yield piece
