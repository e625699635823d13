"""Conversations kept between requests, in a budget of memory: the GPU's, then host, then disk."""

import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from videonsa.errors import VideoNSAError
from videonsa.inference.encoded_clip import Video
from videonsa.inference.engine import VideoQA
from videonsa.inference.messages import Conversation, Message, session_for
from videonsa.inference.session import Session
from videonsa.models.chunks import why_reread
from videonsa.server.settings import KeepSettings
from videonsa.video.parts import VideoStream
from videonsa.video.sampling import SamplingSpec

TIERS = ("device", "host", "disk")
"""Where sessions are kept, from the fastest on."""


class Shown(NamedTuple):
    """An image or a video in a chat."""

    digest: str
    """Of its content."""
    sampling: SamplingSpec


Key = tuple[Hashable, ...]
"""What a chat holds up to the question: of each turn its number and role, then its parts."""


class Lent(NamedTuple):
    """A conversation for the question at hand."""

    conversation: Conversation
    num_cached: int
    """Tokens of it that were read before."""
    came_from: str
    """The tier that held it; "new": none did."""


@dataclass(slots=True, eq=False)
class _Kept:
    conversation: Conversation
    key: Key
    num_bytes: int
    tier: int = 0
    folder: Path | None = None
    """Where it is stored; None in the first tier."""


class _Tier(NamedTuple):
    name: str
    most_bytes: int
    folder: Path | None
    """For folders of sessions; None: they are in the memory of the model's device."""


class Sessions:
    """The conversations of one model. Not for several threads."""

    def __init__(
        self,
        qa: VideoQA,
        keep: KeepSettings,
        *,
        read: Callable[[Video, SamplingSpec], VideoStream],
    ) -> None:
        """Begin with none.

        Args:
            qa: the model.
            keep: how much is kept, and where.
            read: opens media.
        """
        self._qa, self._read = qa, read
        self._kept: list[_Kept] = []  # the one used last stands last
        self._tiers = list(_tiers(qa, keep))

    def held(self, tier: str) -> tuple[int, int]:
        """Sessions that a tier holds, and their bytes."""
        found = [one for one in self._kept if self._tiers[one.tier].name == tier]
        return len(found), sum(one.num_bytes for one in found)

    def lend(self, messages: Sequence[Message], key: Key) -> Lent:
        """A conversation that has read these messages, up to the question.

        Raises:
            VideoError: media that cannot be read.
            BudgetError: what does not fit.
        """
        kept = self._restored(key)
        previous, came_from = None, "new"
        if kept is not None:
            previous, came_from = kept.conversation, self._tiers[kept.tier].name
            kept.tier = 0
            kept.key = kept.key[: _num_common(kept.key, key)]  # should what follows fail
        streams: list[VideoStream] = []
        try:
            conversation = session_for(
                self._qa,
                messages,
                previous=previous,
                read=lambda media, sampling: self._open(media, sampling, streams, spared=kept),
            )
        finally:
            for stream in streams:
                stream.frames.close()
        if kept is None:
            self._kept.append(kept := _Kept(conversation, key, 0))
        kept.conversation, kept.key = conversation, key
        return Lent(conversation, conversation.reused_tokens, came_from)

    def settle(self) -> None:
        """After a question: bring what is kept into its budget."""
        last = self._kept[-1] if self._kept else None
        if last is not None and last.folder is None:  # one that is stored has its size
            last.num_bytes = self._bytes_of(last.conversation.session.num_tokens)
        self._make_room(0, spared=last)

    def forget_others(self) -> bool:
        """Leave the device to the question at hand; whether there was something to move."""
        others = [one for one in self._kept if one.tier == 0]
        for one in others:
            self._lower(one)
        return bool(others)

    def close(self) -> None:
        """Forget all, and remove what was stored."""
        for kept in self._kept:
            if kept.folder is not None:
                shutil.rmtree(kept.folder, ignore_errors=True)
        self._kept.clear()

    def _open(
        self,
        media: Video,
        sampling: SamplingSpec,
        streams: list[VideoStream],
        *,
        spared: _Kept | None,
    ) -> VideoStream:
        stream = self._read(media, sampling)
        streams.append(stream)
        self._make_room(self._bytes_of(self._qa.tokens_of(stream.plan.grid)), spared=spared)
        return stream

    def _restored(self, key: Key) -> _Kept | None:
        """The conversation of which most can be used, in the memory of the device."""
        kept = self._nearest(key)
        if kept is None:
            return None
        self._kept.remove(kept)
        if kept.folder is not None:
            self._make_room(kept.num_bytes, spared=None)
            try:
                kept.conversation.session = Session.load(kept.folder, self._qa, progress=False)
            except VideoNSAError:  # what was stored cannot be used: it is read again
                return None
            finally:
                shutil.rmtree(kept.folder, ignore_errors=True)
            kept.folder = None
        self._kept.append(kept)
        return kept

    def _nearest(self, key: Key) -> _Kept | None:
        def worth(kept: _Kept) -> tuple[int, int, int]:
            common = _num_common(kept.key, key)
            used, lost = kept.key[:common], kept.key[common:]
            return _num_shown(used), -_num_shown(lost), common

        found = max(self._kept, key=worth, default=None)
        return found if found is not None and worth(found)[0] else None

    def _make_room(self, num_bytes: int, *, spared: _Kept | None) -> None:
        """Let so many bytes more fit each tier's budget; one that is in use stays above it too."""
        for number, tier in enumerate(self._tiers):
            held = [one for one in self._kept if one.tier == number]
            while held and sum(one.num_bytes for one in held) + num_bytes > tier.most_bytes:
                oldest = held.pop(0)
                if oldest is not spared:
                    self._lower(oldest)
            num_bytes = 0

    def _lower(self, kept: _Kept) -> None:
        """Bring a session into a lower tier that has a budget for it, or forget it."""
        for number in range(kept.tier + 1, len(self._tiers)):
            tier = self._tiers[number]
            if kept.num_bytes <= tier.most_bytes and self._stored(kept, tier):
                kept.tier = number
                return
        self._kept.remove(kept)
        if kept.folder is not None:
            shutil.rmtree(kept.folder, ignore_errors=True)

    def _stored(self, kept: _Kept, tier: _Tier) -> bool:
        folder = Path(tempfile.mkdtemp(dir=tier.folder))
        try:
            if kept.folder is not None:
                shutil.copytree(kept.folder, folder, dirs_exist_ok=True)
                shutil.rmtree(kept.folder)
            else:
                kept.conversation.session.save(folder, progress=False)
                kept.conversation.session = Session(self._qa)  # which holds nothing
        except (OSError, VideoNSAError):  # no room there
            shutil.rmtree(folder, ignore_errors=True)
            return False
        kept.folder = folder
        return True

    def _bytes_of(self, num_tokens: int) -> int:
        return num_tokens * self._qa.shape.cache_bytes_per_token


def _tiers(qa: VideoQA, keep: KeepSettings) -> Iterator[_Tier]:
    yield _Tier("device", keep.device_bytes, None)
    if why_reread(qa.model.method):  # a session holds no tokens that are read
        return
    if keep.host_bytes:
        yield _Tier("host", keep.host_bytes, keep.host_folder)
    if keep.disk_bytes:
        yield _Tier("disk", keep.disk_bytes, keep.disk_folder)


def _num_common(key: Key, other: Key) -> int:
    pairs = enumerate(zip(key, other, strict=False))
    return next((n for n, (one, two) in pairs if one != two), min(len(key), len(other)))


def _num_shown(key: Key) -> int:
    return sum(isinstance(part, Shown) for part in key)
