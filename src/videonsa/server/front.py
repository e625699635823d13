"""From a request to its answer: a place, its media, a question for the model, and what ends it."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request

from videonsa.inference.engine import VideoQA
from videonsa.inference.messages import ImagePart, Message, Part, VideoPart
from videonsa.models.recorder.protocol import Recorder
from videonsa.planning.defaults import change_sampling
from videonsa.server.asked import Asked, read_request
from videonsa.server.bodies import read_body
from videonsa.server.errors import Gone, RefusedRequest
from videonsa.server.jobs import Done, Event, Failed, Job, Piece
from videonsa.server.media import MediaSources, RequestMedia, Stamp
from videonsa.server.metrics import Metrics
from videonsa.server.model_thread import ModelThread
from videonsa.server.sessions import TIERS, Key, Shown
from videonsa.server.settings import ServeSettings
from videonsa.video.sampling import SamplingSpec

T = TypeVar("T")


class Front:
    """What the routes call. It runs in an event loop, which it never blocks."""

    def __init__(
        self, qa: VideoQA, thread: ModelThread, settings: ServeSettings, *, sources: MediaSources
    ) -> None:
        """Serve a model.

        Args:
            qa: the model, of which only facts are read here.
            thread: that answers.
            settings: limits.
            sources: where media come from.
        """
        self.thread, self.settings = thread, settings
        self.started = int(time.time())
        self.qa, self.sources = qa, sources
        # Of their own: downloads may be slow, and what else the loop has threads do is not.
        self._finders = ThreadPoolExecutor(settings.most_requests, thread_name_prefix="media")
        self._num_requests = 0
        self.metrics = Metrics(
            {
                "requests_under_way": lambda: self._num_requests,
                "questions_waiting": lambda: thread.num_waiting,
                "questions_running": lambda: thread.num_running,
            }
            | {
                f"{what}_on_{tier}": partial(_held, thread, tier, number)
                for number, what in enumerate(("sessions", "session_bytes"))
                for tier in TIERS
            }
        )

    @property
    def num_requests(self) -> int:
        """Requests under way."""
        return self._num_requests

    def stop(self) -> None:
        """Take no more questions, and answer those there are."""
        self.thread.stop()
        self._finders.shutdown(wait=False)

    async def answer(
        self, request: Request, *, recorder: Recorder | None = None
    ) -> AsyncGenerator[Asked | Piece | Done]:
        """Answer a chat completion. Closing it, or cancelling who waits, cancels the question.

        Args:
            request: whose body asks.
            recorder: collects where the answer looked.

        Yields:
            What is asked, once the body is read; then the answer as it comes.

        Raises:
            VideoNSAError: what `refusal` tells a client.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.timeout
        done = None
        with self.metrics.counted(), self.place():
            body = await read_body(request, self.settings.most_body)
            asked = await asyncio.to_thread(read_request, body, system=self.settings.system)
            del body
            self._check_model(asked.model)
            yield asked
            events: asyncio.Queue[Event] = asyncio.Queue()
            with self.thread.coming():
                async with self._until(deadline):
                    job = await self._job(asked, _emitter(loop, events), recorder)
                self.thread.submit(job)
            try:
                while done is None:
                    async with self._until(deadline):
                        event = await events.get()
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Piece):
                        yield event
                    else:
                        done = event
            finally:
                self.thread.cancel(job)
        self.metrics.answered(done)
        yield done

    @asynccontextmanager
    async def _until(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError as error:
            raise RefusedRequest(
                504,
                f"no complete answer within {self.settings.timeout:g} s: ask for fewer frames or "
                "tokens, or begin the server with a longer --timeout",
                code="timeout",
            ) from error

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from before its body is read to the end of its answer."""
        if self._num_requests >= self.settings.most_requests:
            wait = max(1.0, self.thread.seconds_each * self._num_requests)
            raise RefusedRequest(
                429,
                f"{self._num_requests} requests are under way, and no more may be: try again in "
                f"{math.ceil(wait)} s",
                code="queue_full",
                retry_after=wait,
            )
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    def _check_model(self, name: str) -> None:
        if name != self.settings.model_name:
            raise RefusedRequest(
                404,
                f"no model {name[:100]!r} here: want {self.settings.model_name!r}",
                param="model",
                code="model_not_found",
            )

    async def _job(
        self, asked: Asked, emit: Callable[[Event], None], recorder: Recorder | None
    ) -> Job:
        local = RequestMedia(self.sources)
        found = await self.find(local, partial(self._find, asked, local))
        return Job(
            messages=found.messages,
            question=found.question,
            key=found.key,
            samplings=found.samplings,
            stamps=found.stamps,
            options=asked.options,
            emit=emit,
            recorder=recorder,
            release=local.close,
        )

    async def find(self, local: RequestMedia, work: Callable[[], T]) -> T:
        """Look for media in a thread; once nobody waits, this ends, and what was found goes."""
        finding = asyncio.get_running_loop().run_in_executor(self._finders, work)
        try:
            return await asyncio.shield(finding)
        except BaseException:  # its thread may still write: what it leaves goes when it has ended
            local.stop()
            finding.add_done_callback(lambda _: local.close())
            raise

    def _find(self, asked: Asked, local: RequestMedia) -> "_Found":
        """A chat whose media are found."""
        messages, key, question = [], list[Hashable](), None
        stamps = dict[Path, Stamp]()
        for number, turn in enumerate(asked.turns):
            parts = list[Part]()
            key.append((number, turn.role))
            for wanted in turn.parts:
                if isinstance(wanted, str):
                    parts.append(wanted)
                    key.append(wanted)
                    continue
                sampling = change_sampling(self.qa.sampling, **wanted.changes)
                media = local.get(wanted.url, kind=wanted.kind, param=wanted.param)
                kind = ImagePart if wanted.kind == "image" else VideoPart
                parts.append(kind(source=media.path, changes=wanted.changes, key=media.digest))
                key.append(Shown(media.digest, sampling))
                stamps[media.path] = media.stamp
            messages.append(Message(turn.role, parts))
        if isinstance(last := parts[-1] if parts else None, str) and last.strip():
            question = last
            del key[-1]
        samplings = tuple(part.sampling for part in key if isinstance(part, Shown))
        return _Found(tuple(messages), question, tuple(key), samplings, stamps)


class _Found(NamedTuple):
    messages: tuple[Message, ...]
    question: str | None
    key: Key
    samplings: tuple[SamplingSpec, ...]
    stamps: dict[Path, Stamp]


async def last_of(events: AsyncGenerator[Asked | Piece | Done]) -> Done:
    """What is at the end of an answer."""
    while not isinstance(event := await anext(events), Done):
        pass
    return event


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do something for a client, and stop where it goes away.

    Raises:
        Gone: it went away.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for one in (task, watch):
            one.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _held(thread: ModelThread, tier: str, number: int) -> float:
    return thread.held(tier)[number]


def _emitter(
    loop: asyncio.AbstractEventLoop, events: "asyncio.Queue[Event]"
) -> Callable[[Event], None]:
    """Hands events of the thread of the model to an event loop."""

    def emit(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(events.put_nowait, event)

    return emit
