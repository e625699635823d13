"""A session in a folder, and back: the cache, what waits to be read, and what was said and seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.encoded_clip import EncodedClip
from videonsa.inference.live import LiveVideo
from videonsa.inference.room import WhenFull
from videonsa.inference.transcript import Mark, Part, Transcript
from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.steps import SPARE
from videonsa.models.stored_cache.contents import Precision
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import SavedCache, save_cache
from videonsa.parsing import one_line, typed
from videonsa.video.chat import ChatTokenizer, Role, format_ids
from videonsa.video.chat_writer import ChatWriter
from videonsa.video.sampling import SamplingSpec

if TYPE_CHECKING:
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration


class Turn(NamedTuple):
    """What was said."""

    role: Role
    text: str


class Place(NamedTuple):
    """Where a session is, or can go back to."""

    mark: Mark
    turns: tuple[Turn, ...]
    clips: tuple[EncodedClip, ...]


class LoadedSession(NamedTuple):
    """What was read."""

    transcript: Transcript
    """As it was."""
    now: Place
    base: Place
    notes: tuple[str, ...]
    """Of the session, and on how it was stored."""
    live: LiveVideo | None
    when_full: WhenFull


@dataclass(frozen=True, kw_only=True, slots=True)
class _Vision:
    """An `EncodedVision` without its features."""

    kind: Literal["image", "video"]
    grid: tuple[int, int, int]
    seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    ids: tuple[int, ...]
    vision: tuple[_Vision, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clip:
    """An `EncodedClip` without its features."""

    times: tuple[float, ...]
    position_times: tuple[float, ...]
    height: int
    width: int
    is_image: bool
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    frame_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    num_tokens: int
    unread: tuple[int, ...]
    """Numbers of parts."""
    role: Role | None
    text: str
    in_vision: bool
    seen: tuple[int, ...]
    turns: tuple[tuple[Role, str], ...]
    clips: tuple[_Clip, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Live:
    """A `LiveVideo` without the pixels of frames that wait."""

    sampling: SamplingSpec
    size: tuple[int, int] | None
    begun: bool
    start: int | None
    first_time: float | None
    last_time: float | None
    waiting: tuple[float, ...]
    """Seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Session:
    """What of a session is no tensor."""

    now: _Place
    base: _Place
    parts: tuple[_Part, ...]
    """What is not read yet; both places may wait for the same."""
    notes: tuple[str, ...]
    live: _Live | None
    when_full: WhenFull


def save_session(
    folder: str | Path,
    transcript: Transcript,
    *,
    base: Place,
    now: Place,
    notes: tuple[str, ...],
    live: LiveVideo | None,
    when_full: WhenFull,
    tokenizer: ChatTokenizer,
    precision: Precision,
    progress: bool | None,
) -> SavedCache:
    """Write a session; `save_cache` says how, and what may be raised.

    Args:
        folder: to write.
        transcript: with what was read and what was not.
        base: where the session goes back to for a fresh question.
        now: where it is.
        notes: for every answer.
        live: where frames arrive.
        when_full: what to do with them once the context is full.
        tokenizer: which wrote what was read.
        precision: of keys and values.
        progress: a bar on stderr once it takes over a second; None is on a terminal only.
    """
    context, parts = transcript.context, _Parts()
    stored = _Session(
        now=_stored_place(now, transcript.num_read, parts),
        base=_stored_place(base, transcript.num_read, parts),
        parts=tuple(map(_stored_part, parts.all)),
        notes=notes,
        live=None if live is None else _stored_live(live),
        when_full=when_full,
    )
    tensors = _features(parts.all)
    if live is not None:
        tensors |= {_waiting(number): frame for number, (frame, _) in enumerate(live.waiting)}
    return save_cache(
        folder,
        context.cache if transcript.num_read else VideoNSACache(),  # it may all be read again
        context.model,
        method=context.method,
        precision=precision,
        state=asdict(stored),
        tensors=tensors,
        also={"format": format_ids(tokenizer)},
        progress=progress,
    )


def load_session(
    folder: str | Path,
    model: "VideoNSAForConditionalGeneration",
    *,
    tokenizer: ChatTokenizer,
    progress: bool | None,
) -> LoadedSession:
    """Read a session; `load_cache` says how, and what may be raised.

    Args:
        folder: to read.
        model: with the weights and the method that filled the cache.
        tokenizer: for what will be written.
        progress: a bar on stderr once it takes over a second; None is on a terminal only.
    """
    also = {"format": format_ids(tokenizer)}
    loaded = load_cache(folder, model, also=also, spare=SPARE, progress=progress)
    try:
        stored: _Session = typed(_Session, loaded.state)
        parts = [
            _part(one, number, loaded.tensors, model.device)
            for number, one in enumerate(stored.parts)
        ]
        now, base = (_place(one, parts, tokenizer) for one in (stored.now, stored.base))
        live = None if stored.live is None else _live(stored.live, loaded.tensors)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder} holds a cache and no session ({one_line(error)}): load it with load_cache, "
            "or name another folder"
        ) from error
    transcript = Transcript(Context(model, cache=loaded.cache), tokenizer)
    transcript.go_back(now.mark)
    notes = (*stored.notes, *loaded.notes)
    return LoadedSession(transcript, now, base, notes, live, stored.when_full)


class _Parts:
    """Parts that are not read yet, each once."""

    def __init__(self) -> None:
        self.all: list[Part] = []

    def number(self, part: Part) -> int:
        """The number of a part."""
        for number, known in enumerate(self.all):
            if known is part:
                return number
        self.all.append(part)
        return len(self.all) - 1


def _stored_place(place: Place, num_read: int, parts: _Parts) -> _Place:
    mark = place.mark
    unread = mark.unread if mark.num_tokens > num_read else ()
    return _Place(
        num_tokens=mark.num_tokens,
        unread=tuple(map(parts.number, unread)),
        role=mark.writer.role,
        text=mark.writer.text,
        in_vision=mark.writer.in_vision,
        seen=tuple(sorted(mark.seen)),
        turns=place.turns,
        clips=tuple(map(_stored_clip, place.clips)),
    )


def _place(stored: _Place, parts: Sequence[Part], tokenizer: ChatTokenizer) -> Place:
    writer = ChatWriter(tokenizer, stored.role, stored.text, stored.in_vision)
    unread = tuple(parts[number] for number in stored.unread)
    mark = Mark(stored.num_tokens, unread, writer, frozenset(stored.seen))
    clips = tuple(
        EncodedClip(features=torch.empty(0), **{name: getattr(clip, name) for name in _FIELDS})
        for clip in stored.clips
    )
    return Place(mark, tuple(Turn(*turn) for turn in stored.turns), clips)


_FIELDS = tuple(_Clip.__dataclass_fields__)


def _stored_clip(clip: EncodedClip) -> _Clip:
    return _Clip(**{name: getattr(clip, name) for name in _FIELDS})


def _stored_part(part: Part) -> _Part:
    vision = tuple(
        _Vision(kind=one.kind, grid=one.grid, seconds=one.seconds) for one in part.vision
    )
    return _Part(ids=tuple(part.ids), vision=vision)


def _features(parts: Sequence[Part]) -> dict[str, Tensor]:
    found = {}
    for number, part in enumerate(parts):
        for place, one in enumerate(part.vision):
            found[f"{number}.{place}"] = one.features
            if one.kept is not None:
                found[f"{number}.{place}.kept"] = one.kept
    return found


def _part(stored: _Part, number: int, features: dict[str, Tensor], device: torch.device) -> Part:
    vision = tuple(
        EncodedVision(
            one.kind,
            features[f"{number}.{place}"].to(device),
            one.grid,
            one.seconds,
            features.get(f"{number}.{place}.kept"),
        )
        for place, one in enumerate(stored.vision)
    )
    return Part(list(stored.ids), vision)


def _waiting(number: int) -> str:
    """The name of the pixels of a frame that waits."""
    return f"waiting.{number}"


def _stored_live(live: LiveVideo) -> _Live:
    return _Live(
        sampling=live.sampling,
        size=live.size,
        begun=live.begun,
        start=live.start,
        first_time=live.first_time,
        last_time=live.last_time,
        waiting=tuple(time for _, time in live.waiting),
    )


def _live(stored: _Live, pixels: dict[str, Tensor]) -> LiveVideo:
    live = LiveVideo(stored.sampling, size=stored.size)
    live.begun, live.start = stored.begun, stored.start
    live.first_time, live.last_time = stored.first_time, stored.last_time
    live.waiting = tuple(
        (pixels[_waiting(number)], time) for number, time in enumerate(stored.waiting)
    )
    return live
