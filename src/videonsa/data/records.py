"""What one training sample says, whatever the format that it came in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from videonsa.errors import UsageError
from videonsa.parsing import parse_json, typed
from videonsa.video.chat import Role
from videonsa.video.framelist import FOLDER_FPS

_PIXELS = ("min_pixels", "max_pixels")
_OWN = ("num_frames", "min_frames", "max_frames", *_PIXELS, "total_pixels")


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text: special tokens in it mean nothing."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRef:
    """A video: exactly one of `path`, `frames` and `script`."""

    path: str | None = None
    """A video file, or a folder of images; absolute where a source was read."""
    frames: tuple[str, ...] = ()
    """Images that are the frames, in order."""
    frame_rate: float = FOLDER_FPS
    """How many of `frames` make a second."""
    script: str | None = None
    """A video of the suite, as the JSON text that says what it renders; it needs no file."""
    fps: float | None = None
    """Frames to sample a second; this and what follows is left to the options of the build where
    it is None."""
    num_frames: int | None = None
    """Frames to sample, whatever the length."""
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    """Pixels of a frame, as all of them."""
    max_pixels: int | None = None
    total_pixels: int | None = None
    """Of all temporal patches together, each with the pixels of one frame."""

    def __post_init__(self) -> None:
        """Refuse no source, or several: UsageError."""
        given = sum((bool(self.path), bool(self.frames), bool(self.script)))
        if given != 1:
            raise UsageError(f"a video with {given} sources: want one of path, frames and script")

    @property
    def own_sampling(self) -> dict[str, Any]:
        """The sampling options that it states itself."""
        return _given(self, ("fps", *_OWN))


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """An image file."""

    path: str
    min_pixels: int | None = None
    """As all images where it is None."""
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        """Refuse an empty path: UsageError."""
        if not self.path:
            raise UsageError("an image without a path: want the path of its file")

    @property
    def own_sampling(self) -> dict[str, Any]:
        """The sizes that it states itself."""
        return _given(self, _PIXELS)


Media = VideoRef | ImageRef
Part = Text | VideoRef | ImageRef


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one side says; vision stands in turns of the user, where the text refers to it."""

    role: Role
    parts: tuple[Part, ...]
    learned: bool = True
    """Of the assistant: its loss counts."""

    def __post_init__(self) -> None:
        """Refuse vision outside a user's turn: UsageError."""
        if self.role != "user" and not all(isinstance(part, Text) for part in self.parts):
            raise UsageError(f"vision in a turn of the {self.role}: want it in turns of the user")

    @property
    def text(self) -> str:
        """All text of the turn."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One sample: a system message if it has its own, then user and assistant in turn."""

    id: str
    """Where it stands, and a hash of what it says there: the same in every build."""
    source: str
    """The data set that it belongs to, such as 0_30_s_academic_v0_1."""
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        """Refuse turns that do not alternate up to an answer: UsageError."""
        roles = [turn.role for turn in self.turns]
        said = roles[1:] if roles[:1] == ["system"] else roles
        if not said or said != ["user", "assistant"] * (len(said) // 2):
            raise UsageError(
                f"turns of {', '.join(roles) or 'nobody'}: want user and assistant in turn, the "
                "last of them the assistant, and before them at most one system message"
            )

    @property
    def media(self) -> tuple[Media, ...]:
        """Videos and images by order of appearance."""
        return tuple(
            part for turn in self.turns for part in turn.parts if not isinstance(part, Text)
        )

    @property
    def videos(self) -> tuple[VideoRef, ...]:
        """Videos by order of appearance."""
        return tuple(part for part in self.media if isinstance(part, VideoRef))

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Images by order of appearance."""
        return tuple(part for part in self.media if isinstance(part, ImageRef))

    def learned_turns(self, num_turns: int | None = None) -> list[int]:
        """Which of the first turns, or of all, are of the assistant and carry loss."""
        turns = enumerate(self.turns[:num_turns])
        return [index for index, turn in turns if turn.role == "assistant" and turn.learned]

    def to_json(self) -> str:
        """The record as one line of JSON, always the same for the same record."""
        turns = [_turn_to_json(turn) for turn in self.turns]
        content = {"id": self.id, "source": self.source, "turns": turns}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            UsageError: text that it did not write.

        """
        try:
            content = parse_json(text)
            turns = tuple(_turns(content["turns"]))
            return cls(
                id=typed(str, content["id"]), source=typed(str, content["source"]), turns=turns
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"not a record ({error}): want the JSON that Record.to_json writes"
            ) from error


def _given(part: VideoRef | ImageRef, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(part, name)) is not None}


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    content = {"role": turn.role, "parts": [_part_to_json(part) for part in turn.parts]}
    return content if turn.learned else content | {"loss": False}


def _part_to_json(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, ImageRef):
        return {"image": part.path} | part.own_sampling
    if part.frames:
        content: dict[str, Any] = {"frames": list(part.frames), "frame_rate": part.frame_rate}
    elif part.script:
        content = {"script": part.script}
    else:
        content = {"video": part.path}
    return content | part.own_sampling


def _turns(turns: list[dict[str, Any]]) -> Iterator[Turn]:
    for turn in turns:
        parts = tuple(_part_from_json(content) for content in turn["parts"])
        learned = typed(bool, turn.get("loss", True))
        yield Turn(role=typed(Role, turn["role"]), parts=parts, learned=learned)


def _part_from_json(content: dict[str, Any]) -> Part:
    if "text" in content:
        return Text(typed(str, content["text"]))
    kind = ImageRef if "image" in content else VideoRef
    names = {"image": "path", "video": "path"}
    part: Part = typed(kind, {names.get(name, name): value for name, value in content.items()})
    return part
