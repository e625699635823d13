"""Messages of a chat, with text, images and videos in any order, and a session that reads them.

A conversation that begins as the last one did goes on in its session: only what differs is read.
"""

import math
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from videonsa.errors import UsageError
from videonsa.inference.encoded_clip import EncodedClip, Sampled, Video, clip_info
from videonsa.inference.session import Session
from videonsa.inference.stored_session import Place
from videonsa.planning.defaults import SamplingChanges
from videonsa.video.chat import (
    DEFAULT_SYSTEM,
    OPEN_TURN,
    Asked,
    ChatTurn,
    Role,
    VisionSlot,
    check_text,
)
from videonsa.video.chat_writer import ChatWriter
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import name_source

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA

Read = Callable[[Video, SamplingSpec], Video]
"""Reads what a part names, with the sampling asked for; or gives it back, to be read as it is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImagePart:
    """An image in a message."""

    source: Video
    """As for `VideoQA.ask`: what holds one image."""
    changes: SamplingChanges = field(default_factory=SamplingChanges)
    """Of its sampling."""
    key: Hashable = None
    """Stands for its content; None: a path with its time and size does, else the object itself."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoPart:
    """A video in a message."""

    source: Video
    """As for `VideoQA.ask`."""
    start: float | None = None
    """Seconds at which the stretch begins that is shown; None is the beginning."""
    end: float | None = None
    """Seconds before which it ends; None is the end."""
    changes: SamplingChanges = field(default_factory=SamplingChanges)
    """Of its sampling, beside the stretch."""
    key: Hashable = None
    """As for an image."""


Part = str | ImagePart | VideoPart


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """What one side says in one turn: text, images and videos where they stand in it."""

    role: Role
    parts: Sequence[Part]

    def __post_init__(self) -> None:
        """Refuse another role, other parts, and vision outside a user's turn: UsageError."""
        if isinstance(self.parts, str) or not isinstance(self.parts, Sequence):
            raise UsageError(
                f"the parts of a message came as {type(self.parts).__name__}: want a list of "
                "texts, images and videos"
            )
        object.__setattr__(self, "parts", tuple(self.parts))
        for part in self.parts:
            if not isinstance(part, ImagePart | VideoPart):
                check_text("a part of a message", part)
        slot = VisionSlot("image", 1)
        ChatTurn(self.role, tuple(x if isinstance(x, str) else slot for x in self.parts))


class _Step(NamedTuple):
    """A part in its place."""

    message: int
    """Its number."""
    role: Role
    part: Part
    new_turn: bool
    """Whether a turn of the same role ends before it."""
    sampling: SamplingSpec | None
    """Of an image or a video that is to be read."""
    identity: Hashable
    """What another has that is the same to the model."""

    def is_again(self, other: "_Step") -> bool:
        """Whether a session that read the other need not read this one."""
        same = ("message", "role", "new_turn", "sampling", "identity")
        return all(getattr(self, name) == getattr(other, name) for name in same)


@dataclass(slots=True, eq=False, kw_only=True)
class Conversation:
    """Messages that a session has read but for the last text, which is the question."""

    session: Session
    question: Asked
    """For `Session.ask`: OPEN_TURN where the last message ends in an image, a video or blanks."""
    reused: int
    """How many parts of the messages, from the first, were not read again."""
    reused_tokens: int
    """Of these."""
    num_parts: int
    """Of all messages, the question too."""
    _qa: "VideoQA"
    _system: str
    _read: list[tuple[_Step, Place]]
    """What the session was shown and told, and where it was after each."""
    _new_turn: bool
    """Whether the question begins a turn after one of the same role."""

    def prompt_ids(self) -> list[int]:
        """The ids of the prompt, as the chat template of the checkpoint writes these messages.

        They have all tokens of images and videos; a method may read some of these only.
        """
        writer, clips = ChatWriter(self._qa.tokenizer), iter(self.session.clips)
        ids = writer.add("system", self._system)
        for step, _ in self._read:
            ids += writer.close() if step.new_turn else []
            part = step.part
            ids += writer.add(step.role, part if isinstance(part, str) else self._slot(next(clips)))
        ids += writer.close() if self._new_turn else []
        ids += [] if self.question is OPEN_TURN else writer.add("user", self.question)
        return ids + writer.begin_answer()

    def _slot(self, clip: EncodedClip) -> VisionSlot:
        vision = self._qa.shape.vision
        tokens = math.prod(clip.grid(vision)) // vision.merge_size**2
        return VisionSlot("image" if clip.is_image else "video", tokens)


def session_for(
    qa: "VideoQA",
    messages: Sequence[Message],
    *,
    sampling: SamplingSpec | None = None,
    read: Read | None = None,
    previous: Conversation | None = None,
) -> Conversation:
    """A session that has read messages up to the last text, which is then asked.

    The system message is Qwen2.5-VL's where the messages do not begin with one.

    Args:
        qa: the model.
        messages: of a chat; the last is the user's.
        sampling: of images and videos, before the changes of each; None is the model's own.
        read: reads an image or a video before it is encoded, for example in another process; it
            gives a clip, or the source that is then read here.
        previous: a conversation with this model that is over. Its session is taken as far as its
            parts are the same: text, sampling, and sources by their path, time of change and size,
            else by being the same object; it is let go where there are none. Where this raises, it
            can be passed again.

    Raises:
        VideoError: an image or a video that cannot be read.
        UsageError: messages without a question, or an argument outside its domain.
        BudgetError: what does not fit the context or the memory.
    """
    system, asked = _split_system(messages)
    steps = list(_steps(qa, asked, sampling))
    question, new_turn = _question(steps)
    session, done = _begun(qa, system, steps, previous)
    reused, reused_tokens = len(done), session.num_tokens if done else 0
    for step in steps[reused:]:
        _show(session, step, read)
        done.append((step, session.place()))
    if new_turn:
        session.end_turn()
    return Conversation(
        session=session,
        question=question,
        reused=reused,
        reused_tokens=reused_tokens,
        num_parts=len(steps) + (question is not OPEN_TURN),
        _qa=qa,
        _system=system,
        _read=done,
        _new_turn=new_turn,
    )


def _begun(
    qa: "VideoQA", system: str, steps: Sequence[_Step], previous: Conversation | None
) -> tuple[Session, list[tuple[_Step, Place]]]:
    """A session, and what of the steps it has done: that of before, or a new one in its place."""
    if previous is None or previous._qa is not qa:
        return Session(qa, system=system, notes=qa.notes), []
    done = previous._read
    del done[_num_common(steps, done) if previous._system == system else 0 :]
    if done:
        previous.session.return_to(done[-1][1])
    else:
        previous._system = system
        previous.session = Session(qa, system=system, notes=qa.notes)
    return previous.session, done


def shared_key(messages: Sequence[Message]) -> Hashable:
    """Equal for messages that differ in their last text only; while their objects live."""
    keys = [
        (number, message.role, _identity(part), _stated_changes(part))
        for number, message in enumerate(messages)
        for part in message.parts
    ]
    asks = messages and messages[-1].parts and isinstance(messages[-1].parts[-1], str)
    return tuple(keys[:-1] if asks else keys), bool(asks)


def _stated_changes(part: Part) -> Hashable:
    if isinstance(part, str):
        return None
    stretch = (part.start, part.end) if isinstance(part, VideoPart) else ()
    return stretch, tuple(sorted((name, repr(value)) for name, value in part.changes.items()))


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The system message, and the messages after it."""
    if not messages or messages[-1].role != "user":
        came = f"a last one of the {messages[-1].role}" if messages else "none"
        raise UsageError(f"messages came with {came}: want one of the user at the end, who asks")
    first = messages[0]
    if first.role != "system":
        return DEFAULT_SYSTEM, messages
    return "".join(part for part in first.parts if isinstance(part, str)), messages[1:]


def _steps(
    qa: "VideoQA", messages: Sequence[Message], sampling: SamplingSpec | None
) -> Iterator[_Step]:
    """The parts in order; a message without any has an empty text. Other empty texts are none."""
    role: Role = "system"
    for number, message in enumerate(messages):
        new_turn, role = message.role == role, message.role
        for part in [part for part in message.parts if part != ""] or [""]:
            wanted = None if isinstance(part, str) else _sampling(qa, part, sampling)
            yield _Step(number, role, part, new_turn, wanted, _identity(part))
            new_turn = False


def _question(steps: list[_Step]) -> tuple[Asked, bool]:
    """Take the last text from the steps: the question, and whether it begins a new turn."""
    last = steps[-1]
    if not isinstance(last.part, str) or not last.part.strip():
        return OPEN_TURN, False
    del steps[-1]
    return last.part, last.new_turn


def _sampling(
    qa: "VideoQA", part: ImagePart | VideoPart, sampling: SamplingSpec | None
) -> SamplingSpec | None:
    """How a part is read; None of a clip that is read already."""
    changes = part.changes
    if isinstance(part, VideoPart) and (part.start, part.end) != (None, None):
        changes = {**changes, "start": part.start, "end": part.end}
    is_clip = isinstance(part.source, Sampled)
    wanted = qa.wanted_sampling(part.source, None if is_clip else sampling, changes)
    return None if is_clip else wanted


def _identity(part: Part) -> Hashable:
    if isinstance(part, str):
        return part
    kind = "image" if isinstance(part, ImagePart) else "video"
    return (kind, _content(part.source) if part.key is None else ("key", part.key))


def _content(source: object) -> Hashable:
    """Stands for what a source holds, as long as the object that names it lives."""
    if isinstance(source, str | os.PathLike):
        return _file(name_source(source))
    if isinstance(source, list | tuple) and all(isinstance(x, str | os.PathLike) for x in source):
        return tuple(_file(Path(one)) for one in source)
    return ("object", id(source))


def _file(path: object) -> Hashable:
    """A path with its time of change and size; without them where there is no such file."""
    where = os.path.abspath(str(path))
    try:
        found = os.stat(where)
    except OSError:
        return (where,)
    return where, found.st_mtime_ns, found.st_size


def _num_common(steps: Sequence[_Step], done: Sequence[tuple[_Step, Place]]) -> int:
    """How many steps were done before.

    Not those of text that was read together with an image or a video after it, where these differ:
    then what is counted of a prompt would hang on what was read before.
    """
    pairs = enumerate(zip(steps, done, strict=False))
    different = (number for number, (step, (before, _)) in pairs if not step.is_again(before))
    common = next(different, min(len(steps), len(done)))
    if any(not isinstance(step.part, str) for step, _ in done[common:]):
        while common and isinstance(steps[common - 1].part, str):
            common -= 1
    return common


def _show(session: Session, step: _Step, read: Read | None) -> None:
    """Show or tell a session a part, which may begin a turn."""
    part, sampling = step.part, step.sampling
    if step.new_turn:
        session.end_turn()
    if isinstance(part, str):
        session.say(step.role, part)
        return
    source = part.source
    if sampling is not None and read is not None:
        source = read(source, sampling)
    if isinstance(part, ImagePart) and not clip_info(source).is_image:
        raise UsageError(f"{clip_info(source).path}: a video in place of an image: want an image")
    session.join(source, sampling=None if isinstance(source, Sampled) else sampling)
