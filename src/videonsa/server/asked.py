"""What a request asks: media and text in the order of the chat, sampling, and how to answer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from videonsa.inference.sampling import AnswerOptions, GenerationOptions
from videonsa.planning.defaults import SamplingChanges
from videonsa.server.errors import RefusedRequest
from videonsa.server.schema import (
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    VideoPart,
    named_fields,
    parse_request,
)
from videonsa.video.chat import Role
from videonsa.video.sampling import SamplingSpec

ALL_FRAMES = 2**31 - 1
"""What vLLM's -1 asks for; a video has fewer, and is taken whole."""
Kind = Literal["image", "video", "file"]


class Wanted(NamedTuple):
    """An image or a video in a user's turn, as a client names it."""

    kind: Kind
    url: str
    changes: SamplingChanges
    """Of the model's own sampling."""
    param: str
    """The field of the request, for refusals."""


class Turn(NamedTuple):
    """A message."""

    role: Role
    parts: tuple[str | Wanted, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request, read."""

    model: str
    turns: tuple[Turn, ...]
    """Of the chat, a system message first; the last is the user's."""
    options: AnswerOptions
    stream: bool
    include_usage: bool
    """In a chunk of its own at the end of a stream."""
    ignored: tuple[str, ...]
    """Fields without effect."""


def read_request(body: bytes, *, system: str) -> Asked:
    """Read the body of a chat completion.

    Args:
        body: of the request.
        system: the system message where it has none.

    Raises:
        RefusedRequest: 400, what cannot be answered.
        UsageError: a value outside its domain.
    """
    request = parse_request(body)
    turns = _turns(request)
    if turns[-1].role != "user":
        raise RefusedRequest(
            400,
            f"the last message is one of the {turns[-1].role}: want one of the user at the end, "
            "who asks",
            param="messages",
        )
    if not any(isinstance(part, Wanted) for turn in turns for part in turn.parts):
        raise RefusedRequest(
            400,
            "messages hold no video and no image: this server answers about those; add a part of "
            "type video_url or image_url",
            param="messages",
        )
    if turns[0].role != "system":
        turns = [Turn("system", (system,)), *turns]
    options = _options(request)
    GenerationOptions(**options)  # its checks
    wanted = request.stream_options
    return Asked(
        model=request.model,
        turns=tuple(turns),
        options=options,
        stream=bool(request.stream),
        include_usage=wanted is not None and wanted.include_usage,
        ignored=tuple(named_fields(request)),
    )


def _turns(request: ChatRequest) -> list[Turn]:
    of_all = _of_all_videos(request)
    return [
        _turn(message, f"messages.{number}", of_all)
        for number, message in enumerate(request.messages)
    ]


def _turn(message: Message, place: str, of_all: SamplingChanges) -> Turn:
    role: Role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Turn(role, (message.content,))
    parts: list[str | Wanted] = []
    for number, part in enumerate(message.content):
        if isinstance(part, TextPart):
            parts.append(part.text)
            continue
        where = f"{place}.content.{number}"
        if role != "user":
            raise RefusedRequest(
                400,
                f"a turn of the {message.role} came with media: want them in turns of the user",
                param=where,
            )
        parts.append(_wanted(part, where, of_all))
    return Turn(role, tuple(parts))


def _wanted(part: VideoPart | ImagePart | FilePart, place: str, of_all: SamplingChanges) -> Wanted:
    if isinstance(part, FilePart):
        return Wanted("file", part.file.file_id, of_all, f"{place}.file.file_id")
    if isinstance(part, ImagePart):
        pixels = part.image_url.max_pixels
        changes = SamplingChanges() if pixels is None else SamplingChanges(max_pixels=pixels)
        return Wanted("image", part.image_url.url, changes, f"{place}.image_url.url")
    own = changes_of(part.video_url)
    return Wanted("video", part.video_url.url, _over(of_all, own), f"{place}.video_url.url")


def _of_all_videos(request: ChatRequest) -> SamplingChanges:
    """What a request says of the sampling of its videos, in all spellings.

    Raises:
        RefusedRequest: spellings that contradict each other, or a rule there is not.
    """
    found: dict[str, Any] = {}
    for place, given in _spellings(request):
        for name, value in given.items():
            if name in found and found[name] != value:
                raise RefusedRequest(
                    400,
                    f"{name} is {found[name]} and, in {place}, {value}: give it once",
                    param=place,
                )
            found[name] = value
    return cast(SamplingChanges, found)


def _spellings(request: ChatRequest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "the request", changes_of(request)
    if request.media_io_kwargs is not None:
        place = "media_io_kwargs"
        if request.media_io_kwargs.image:
            raise RefusedRequest(400, f"{place}.image is not supported: leave it out", param=place)
        if request.media_io_kwargs.video is not None:
            video = request.media_io_kwargs.video.model_dump(exclude_none=True)
            yield f"{place}.video", _frames(video)
    if request.mm_processor_kwargs is not None:
        place = "mm_processor_kwargs"
        given = request.mm_processor_kwargs.model_dump(exclude_none=True)
        if given.pop("do_sample_frames", True) is False:
            raise RefusedRequest(
                400, f"{place}.do_sample_frames: false is not supported: leave it out", param=place
            )
        size = given.pop("size", {})
        if "shortest_edge" in size:
            raise RefusedRequest(
                400,
                f"{place}.size.shortest_edge is not supported: frames are never enlarged on "
                "request; leave it out",
                param=place,
            )
        if "longest_edge" in size:
            given.setdefault("max_pixels", size["longest_edge"])
        yield place, _frames(given)


def changes_of(given: Sampling) -> SamplingChanges:
    """The fields of a request as those of `SamplingSpec`."""
    names = set(Sampling.model_fields)
    found = given.model_dump(include=names, exclude_none=True)
    if "max_video_tokens" in found:
        found["max_tokens"] = found.pop("max_video_tokens")
    return cast(SamplingChanges, _frames(found))


def _frames(given: dict[str, Any]) -> dict[str, Any]:
    """Rate and number of frames: -1 are all, and given together the number is a maximum."""
    found = dict(given)
    number = found.get("num_frames")
    if number == -1:
        number = found["num_frames"] = ALL_FRAMES
    if number is not None and "fps" in found:
        del found["num_frames"]
        if number != ALL_FRAMES:
            found["max_frames"] = min(number, found.get("max_frames", number))
    return found


def _over(of_all: SamplingChanges, own: SamplingChanges) -> SamplingChanges:
    """The sampling of one video: its own fields, then those of all. A rule replaces another."""
    found: dict[str, Any] = {**of_all, **own}
    if "fps" in own or "num_frames" in own:
        for name in {"fps", "num_frames"} - own.keys():
            found.pop(name, None)
    return cast(SamplingChanges, found)


def _options(request: ChatRequest) -> AnswerOptions:
    """How to answer, by the keywords of `Session.ask`."""
    lengths = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(lengths) > 1:
        raise RefusedRequest(
            400,
            f"max_tokens={request.max_tokens} and max_completion_tokens="
            f"{request.max_completion_tokens}: give one of them",
            param="max_completion_tokens",
        )
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")
    found: dict[str, Any] = {name: getattr(request, name) for name in names}
    found["max_new_tokens"] = next(iter(lengths), None)
    return cast(AnswerOptions, {name: of for name, of in found.items() if of is not None})


def sampling_to_dict(spec: SamplingSpec) -> dict[str, Any]:
    """A sampling in the words of a request; None is left out."""
    names = ("fps", "num_frames", "max_frames", "max_pixels", "start", "end", "mode")
    found = {name: getattr(spec, name) for name in names}
    found["max_video_tokens"] = spec.max_tokens
    return {name: value for name, value in found.items() if value is not None}
