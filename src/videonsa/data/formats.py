"""Rows of LLaVA-Video-178K, ms-swift and Hugging Face messages to the turns of a record."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, NamedTuple

from videonsa.data.fields import PATHS, PIXELS, SAMPLING, unread_fields
from videonsa.data.reasons import DropError, Reason
from videonsa.data.records import ImageRef, Media, Part, Text, Turn, VideoRef
from videonsa.video.chat import Role

Format = Literal["llava", "swift", "messages"]
Resolve = Callable[[str], str]
"""From a path as it stands in a row to the path of the file."""
_ROLES: dict[Any, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_PLACEHOLDER = re.compile("(<image>|<video>)")
_MOST = 2**31
"""Frames or pixels that a video may ask for."""


class ParsedRow(NamedTuple):
    """What a row says."""

    turns: tuple[Turn, ...]
    source: str | None
    """The data set that it names."""
    placed: bool
    """Its text does not say where its videos and images stand: they were put first."""
    unread: tuple[str, ...] = ()
    """Fields that are not used."""


def detect_format(row: Any) -> Format | None:
    """The format of a row by its keys; None if it is none of them."""
    turns = _turns_of(row)
    if turns is None:
        return None
    if any(isinstance(turn.get("content"), list) for turn in turns):
        return "messages"
    return "llava" if any("from" in turn for turn in turns) else "swift"


def parse_row(row: Any, *, resolve: Resolve) -> ParsedRow:
    """The turns of a row in any of the formats, the paths of its files resolved.

    `<image>` stands for a video where a row lists no images, as in LLaVA-Video-178K. There the line
    break beside it belongs to it.

    Raises:
        DropError: the row is not a conversation that can be trained on.

    """
    form = detect_format(row)
    if form is None:
        raise DropError(Reason.BAD_ROW, describe_row(row))
    unread = unread_fields(row, _turns_of(row) or [])
    listed = _Listed(
        videos=[_video(item, resolve) for item in _items(row, "videos", "video")],
        images=[_image(item, resolve) for item in _items(row, "images", "image")],
    )
    source = row.get("data_source")
    turns, placed = _place(_read_turns(row, form, listed, resolve), listed)
    for turn in turns:
        _check_text(turn)
    named = source if isinstance(source, str) and source else None
    return ParsedRow(turns, named, placed, unread)


def describe_row(row: Any) -> str:
    """What stands in the place of a row of a known format."""
    if not isinstance(row, dict):
        return f"it is {type(row).__name__}, not an object"
    keys = ", ".join(str(key) for key in list(row)[:8])
    return f"its keys are {keys or 'none'}: want 'conversations' or 'messages', a list of turns"


def _turns_of(row: Any) -> list[dict[str, Any]] | None:
    if not isinstance(row, dict):
        return None
    for key in ("conversations", "messages"):
        turns = row.get(key)
        if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
            return turns
    return None


class _Listed:
    """The files that a row lists outside its text, as far as they have not been placed yet."""

    def __init__(self, *, videos: list[VideoRef], images: list[ImageRef]) -> None:
        self.videos = videos
        self.images = images
        self._only_videos = not images

    def take(self, kind: str) -> Media:
        left: list[VideoRef] | list[ImageRef] = self.images
        if kind == "video" or self._only_videos:
            left = self.videos
        if not left:
            raise DropError(Reason.PLACEHOLDERS, f"its text has more <{kind}> than it lists")
        return left.pop(0)


def _read_turns(row: Any, form: Format, listed: _Listed, resolve: Resolve) -> list[Turn]:
    turns = []
    system = row.get("system")
    if not isinstance(system, str | None):
        raise DropError(Reason.BAD_ROW, f"'system' is {type(system).__name__}, not text")
    if system:
        turns.append(Turn(role="system", parts=(Text(system),)))
    for said in _turns_of(row) or ():
        name = said.get("from", said.get("role"))
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise DropError(Reason.BAD_TURNS, f"a turn of {name!r}: want user and assistant")
        content = said.get("value", said.get("content"))
        parts: tuple[Part, ...]
        if isinstance(content, list):
            parts = tuple(_content_part(item, listed, resolve) for item in content)
        elif not isinstance(content, str):
            raise DropError(Reason.BAD_ROW, f"a turn holds {type(content).__name__}, not text")
        elif role == "user" and form != "messages":
            parts = tuple(_split(content, listed, own_line=form == "llava"))
        else:
            parts = (Text(content),)
        if role != "user" and not all(isinstance(part, Text) for part in parts):
            raise DropError(Reason.BAD_TURNS, f"a video or an image in a turn of the {role}")
        turns.append(Turn(role=role, parts=parts, learned=_is_learned(said, role)))
    learned = [turn.learned for turn in turns if turn.role == "assistant"]
    if learned and not any(learned):
        raise DropError(Reason.NO_LOSS, "'loss' is false in all turns of the assistant")
    return turns


def _is_learned(said: dict[str, Any], role: Role) -> bool:
    loss = said.get("loss")
    if not isinstance(loss, bool | None):
        raise DropError(Reason.BAD_ROW, f"'loss' of a turn is {loss!r}: want true or false")
    if loss and role != "assistant":
        raise DropError(Reason.UNSUPPORTED, f"'loss' of a turn of the {role}: want it false")
    return role != "assistant" or loss is not False


def _split(text: str, listed: _Listed, *, own_line: bool) -> Iterator[Part]:
    pieces = _PLACEHOLDER.split(text)
    for index, piece in enumerate(pieces):
        if index % 2:
            yield listed.take(piece[1:-1])
            continue
        if own_line and index > 0:
            piece = piece.removeprefix("\n")
        elif own_line and index == 0 and len(pieces) == 3 and not pieces[2]:
            piece = piece.removesuffix("\n")
        if piece:
            yield Text(piece)


def _content_part(item: Any, listed: _Listed, resolve: Resolve) -> Part:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return Text(item["text"])
    if kind in ("video", "video_url", "image", "image_url"):
        kind = kind.removesuffix("_url")
        if not any(item.get(key) for key in PATHS):
            return listed.take(kind)
        return _video(item, resolve) if kind == "video" else _image(item, resolve)
    raise DropError(Reason.UNSUPPORTED, f"a part of type {kind!r}: want text, video or image")


def _place(turns: Sequence[Turn], listed: _Listed) -> tuple[tuple[Turn, ...], bool]:
    """Put files without a placeholder before the first user text, if there are no placeholders."""
    left: list[Part] = [*listed.images, *listed.videos]
    if not left:
        return tuple(turns), False
    if any(not isinstance(part, Text) for turn in turns for part in turn.parts):
        raise DropError(Reason.PLACEHOLDERS, f"it lists {len(left)} more than its text has")
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise DropError(Reason.BAD_TURNS, "no turn of the user")
    asked = replace(turns[first], parts=(*left, *turns[first].parts))
    return (*turns[:first], asked, *turns[first + 1 :]), True


def _check_text(turn: Turn) -> None:
    shown = any(not isinstance(part, Text) for part in turn.parts)
    if turn.role != "system" and not turn.text.strip() and not shown:
        raise DropError(Reason.EMPTY_TEXT, f"a turn of the {turn.role} is empty")


def _items(row: dict[str, Any], *keys: str) -> Iterator[Any]:
    values = (row[key] for key in keys if row.get(key))
    return chain.from_iterable(value if isinstance(value, list) else [value] for value in values)


def _video(item: Any, resolve: Resolve) -> VideoRef:
    options = item if isinstance(item, dict) else {}
    path = _path_of(item)
    own = {ours: options[name] for name, ours in SAMPLING.items() if options.get(name) is not None}
    rate = own.pop("fps", None)
    if isinstance(path, list) and rate is None:
        rate = options.get("sample_fps")
    if rate is not None and not (type(rate) in (int, float) and 0 < rate < 1000):
        raise DropError(Reason.BAD_ROW, f"fps={rate!r} of a video: want a number above 0")
    _check_numbers(own)
    if isinstance(path, list):
        frames = tuple(resolve(_string(frame)) for frame in path)
        own |= {} if rate is None else {"frame_rate": rate}
        return VideoRef(frames=frames, **own)
    if rate is not None and "num_frames" in own:
        raise DropError(Reason.BAD_ROW, "'fps' and 'nframes' of a video: want one of them")
    return VideoRef(path=resolve(path), fps=rate, **own)


def _image(item: Any, resolve: Resolve) -> ImageRef:
    path = _path_of(item)
    if isinstance(path, list):
        raise DropError(Reason.BAD_ROW, "a list in the place of an image")
    options = item if isinstance(item, dict) else {}
    own = {name: options[name] for name in PIXELS if options.get(name) is not None}
    _check_numbers(own)
    return ImageRef(path=resolve(path), **own)


def _check_numbers(own: dict[str, Any]) -> None:
    for name, value in own.items():
        if not (type(value) is int and 0 < value < _MOST):
            raise DropError(Reason.BAD_ROW, f"{name}={value!r}: want a whole number above 0")


def _path_of(item: Any) -> str | list[Any]:
    if isinstance(item, dict):
        item = next((item[key] for key in PATHS if item.get(key)), None)
        if isinstance(item, dict):  # {"video_url": {"url": ...}}
            item = item.get("url")
    return item if isinstance(item, list) and item else _string(item)


def _string(path: Any) -> str:
    if not isinstance(path, str) or not path or "\0" in path:
        raise DropError(Reason.BAD_ROW, f"{path!r} in the place of a path")
    return path
