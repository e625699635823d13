"""Reads media in processes of their own, which may crash or hang without the server.

A process is started again for the next request. What is wrong with a file is told by its error;
what ends the process, or takes too long, is a `VideoError` too.
"""

import resource
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import LifoQueue
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from videonsa.data.isolated import CallFailed, IsolatedCaller
from videonsa.errors import VideoError, VideoNSAError
from videonsa.server.frames import thumbnails
from videonsa.video.decode import probe, stream_video
from videonsa.video.parts import SampledFrame, VideoStream
from videonsa.video.sampling import SamplingPlan, SamplingSpec, VideoInfo

SECONDS = 60.0
"""In which a header, or a few frames, have to be there."""
MOST_MEMORY = 6 * 2**30
"""Bytes that a process may take: what a file states can make a decoder ask for more."""
BATCH_BYTES = 2**22
"""Of frames that are sent together, at most..."""
BATCH_SECONDS = 0.2
"""... and of decoding: who does not want the rest says so between two batches."""
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Opened(NamedTuple):
    info: VideoInfo
    plan: SamplingPlan
    notes: tuple[str, ...]


class IsolatedReader:
    """A `FrameReader` that decodes elsewhere. For several threads."""

    def __init__(self, *, seconds: float = SECONDS, processes: int = 2) -> None:
        """Read in so many processes, which start when they are needed.

        Args:
            seconds: in which a header or a few frames have to be there.
            processes: one decodes for the model; headers are read beside it.
        """
        self._callers = [IsolatedCaller(deadline=seconds) for _ in range(processes)]
        self._idle: LifoQueue[IsolatedCaller] = LifoQueue()
        for caller in self._callers:
            self._idle.put(caller)

    def start(self) -> None:
        """Start the processes without waiting for them: the first request is quicker then."""
        for _ in self._callers:
            threading.Thread(target=self._call, args=(_begin,), daemon=True).start()

    def describe(self, path: Path) -> VideoInfo:
        """See `FrameReader`."""
        return self._call(_describe, path)

    def thumbnails(self, path: Path, times: Sequence[float], *, longest: int) -> list[str]:
        """See `FrameReader`."""
        return self._call(_thumbnails, path, tuple(times), longest)

    def open(self, media: Path, sampling: SamplingSpec) -> VideoStream:
        """See `FrameReader`."""
        items = self._items(media, sampling)
        opened = cast(_Opened, next(items))  # from here on, closing the stream frees its process
        frames = cast(Generator[SampledFrame, None, None], items)
        return VideoStream(info=opened.info, plan=opened.plan, notes=opened.notes, frames=frames)

    def close(self) -> None:
        """End the processes; for when nothing is read any more."""
        for caller in self._callers:
            caller.close()

    def _items(
        self, media: Path, sampling: SamplingSpec
    ) -> Generator[_Opened | SampledFrame, None, None]:
        """First what is read, then its frames."""
        with (
            self._caller(media) as caller,
            closing(caller.stream(_decode, media, sampling)) as items,
        ):
            for item in items:
                if isinstance(item, VideoNSAError):
                    raise item
                if isinstance(item, _Opened):
                    yield item
                else:
                    yield from item

    def _call(
        self,
        function: Callable[Arguments, Result | VideoNSAError],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        with self._caller(*args[:1]) as caller:
            found = caller(function, *args, **kwargs)
        if isinstance(found, VideoNSAError):
            raise found
        return found

    @contextmanager
    def _caller(self, *media: Any) -> Iterator[IsolatedCaller]:
        """One that nothing else uses; its failures are told of the media."""
        caller = self._idle.get()
        name = Path(media[0]).name if media and isinstance(media[0], Path | str) else "the video"
        try:
            yield caller
        except CallFailed as failure:
            told = {
                "hangs": f"{failure.reason}, and given up",
                "dies": f"the process that decodes it ended ({failure.reason})",
            }
            raise VideoError(
                f"{name}: {told.get(failure.kind, failure.reason)}: try again, and if it stays so, "
                "convert the video, for example to h264 in mp4"
            ) from failure
        finally:
            self._idle.put(caller)


def _begin() -> None:
    """What a process does before anything else: it is bounded in memory."""
    with suppress(ValueError, OSError):  # a lower limit is set from outside
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))


def _describe(path: Path) -> VideoInfo | VideoNSAError:
    _begin()
    try:
        return probe(path)
    except VideoNSAError as error:
        return error


def _decode(
    media: Path, sampling: SamplingSpec
) -> Generator[_Opened | list[SampledFrame] | VideoNSAError]:
    _begin()
    try:
        stream = stream_video(media, sampling=sampling, beside=True)
        with closing(stream.frames):
            yield _Opened(stream.info, stream.plan, stream.notes)
            batch: list[SampledFrame] = []
            size = max(1, BATCH_BYTES // (3 * stream.plan.height * stream.plan.width))
            sent = time.monotonic()
            for frame in stream.frames:
                batch.append(frame)
                if len(batch) == size or time.monotonic() - sent > BATCH_SECONDS:
                    yield batch
                    batch, sent = [], time.monotonic()
            if batch:
                yield batch
    except VideoNSAError as error:
        yield error


def _thumbnails(path: Path, times: Sequence[float], longest: int) -> list[str] | VideoNSAError:
    _begin()
    try:
        return thumbnails(path, times, longest=longest)
    except VideoNSAError as error:
        return error
