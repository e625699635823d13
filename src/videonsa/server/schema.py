"""The JSON of a chat completion, as OpenAI and vLLM spell it, checked and typed."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videonsa.server.errors import RefusedRequest

MOST_MESSAGES = 1000
MOST_PARTS = 1000
"""Of one message."""
MOST_THUMBNAILS = 64
_MOST_TOLD = 3
"""Mistakes of a request that are told together."""
_MOST_NAME = 60
"""Characters of a name that a client made up."""


class _Strict(BaseModel):
    """Other fields are refused; numbers are numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Sampling(_Strict):
    """Which frames of a video to take, and how large. All optional."""

    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    max_video_tokens: int | None = None
    """Merged tokens of a whole video; OpenAI's `max_tokens` are those of the answer."""
    start: float | None = None
    end: float | None = None
    """Seconds of a stretch."""


class VideoURL(Sampling):
    """A video, and how it alone is sampled."""

    url: str


class ImageURL(_Strict):
    """An image."""

    url: str
    max_pixels: int | None = None
    detail: Literal["auto", "low", "high"] | None = None


class FileName(_Strict):
    """A file that was uploaded."""

    file_id: str


class TextPart(_Strict):
    """Text."""

    type: Literal["text"]
    text: str


class VideoPart(_Strict):
    """A video."""

    type: Literal["video_url"]
    video_url: VideoURL


class ImagePart(_Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL


class FilePart(_Strict):
    """A file that was uploaded."""

    type: Literal["file"]
    file: FileName


Body = TypeVar("Body", bound=_Strict)
ContentPart = Annotated[TextPart | VideoPart | ImagePart | FilePart, Field(discriminator="type")]


class Message(_Strict):
    """What was said in one turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(max_length=MOST_PARTS)]
    name: str | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None


class StreamOptions(_Strict):
    """What a stream holds."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class VideoIO(_Strict):
    """How vLLM's loader of videos samples; -1 frames are all."""

    num_frames: int | None = None
    fps: float | None = None


class MediaIO(_Strict):
    """vLLM's `media_io_kwargs`."""

    video: VideoIO | None = None
    image: dict[str, Any] | None = None


class Size(_Strict):
    """Fewest and most pixels, as transformers spells them."""

    shortest_edge: int | None = None
    longest_edge: int | None = None


class ProcessorOptions(_Strict):
    """vLLM's `mm_processor_kwargs`."""

    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    do_sample_frames: bool | None = None
    size: Size | None = None


class ChatRequest(Sampling):
    """The body of a chat completion."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    media_io_kwargs: MediaIO | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    # Taken, of no effect here, and named in the usage.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    # Refused unless they change nothing.
    n: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    logit_bias: Any = None
    min_p: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    chat_template_kwargs: Any = None


class PlanRequest(Sampling):
    """A video or an image, and what is to be known before a question about it."""

    url: str
    kind: Literal["video", "image"] = "video"
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    thumbnails: Annotated[int, Field(ge=0, le=MOST_THUMBNAILS)] = 0


NAMED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields of a request that have no effect, which its answer says."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "n": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "logit_bias": ({},),
        "min_p": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (False, True),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "chat_template_kwargs": ({},),
    }
)
"""Values of what there is not that ask for nothing."""
_OF_ANSWERS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "refusal": ("",),
        "annotations": ([],),
        "audio": (),
        "tool_calls": ([],),
        "function_call": (),
    }
)
"""Fields that a message has which a client sends back; they hold nothing here."""


def parse_body(kind: type[Body], body: bytes) -> Body:
    """Read a body of JSON.

    Raises:
        RefusedRequest: 400, with the field and what is wrong with it.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _mistakes(error) from error


def parse_request(body: bytes) -> ChatRequest:
    """Read the body of a chat completion.

    Raises:
        RefusedRequest: 400, with the field and what is wrong with it.
    """
    request = parse_body(ChatRequest, body)
    _check_neutral(request, _NEUTRAL, "")
    for number, message in enumerate(request.messages):
        _check_neutral(message, _OF_ANSWERS, f"messages.{number}.")
    return request


def named_fields(request: ChatRequest) -> Iterator[str]:
    """The fields that a client sent and that have no effect."""
    yield from (name for name in NAMED if getattr(request, name) is not None)
    for number, message in enumerate(request.messages):
        if message.name is not None:
            yield f"messages.{number}.name"
        parts = message.content if isinstance(message.content, list) else []
        for place, part in enumerate(parts):
            if isinstance(part, ImagePart) and part.image_url.detail is not None:
                yield f"messages.{number}.content.{place}.image_url.detail"
    for name in ("include_obfuscation", "continuous_usage_stats"):
        if request.stream_options is not None and getattr(request.stream_options, name):
            yield f"stream_options.{name}"


def _check_neutral(holder: _Strict, neutral: Mapping[str, tuple[Any, ...]], prefix: str) -> None:
    for name, values in neutral.items():
        value = getattr(holder, name)
        if value is None or any(type(value) is type(one) and value == one for one in values):
            continue
        if isinstance(value, float) and value in values:  # 0.0 for 0
            continue
        allowed = f", or {' or '.join(map(repr, values))}" if values else ""
        raise RefusedRequest(
            400,
            f"{prefix}{name} is not supported here: leave it out{allowed}",
            param=f"{prefix}{name}",
            code="unsupported_parameter",
        )


def _mistakes(error: ValidationError) -> RefusedRequest:
    """The first mistakes in one line, without the values that a client sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    found = [one for one in found if "str" not in one["loc"]] or found  # text, or parts: one says
    told = [_told(one["type"], _place(one["loc"]), one["msg"]) for one in found[:_MOST_TOLD]]
    if len(found) > _MOST_TOLD:
        told.append(f"and {len(found) - _MOST_TOLD} more")
    code = "unknown_parameter" if found[0]["type"] == "extra_forbidden" else None
    return RefusedRequest(400, "; ".join(told), param=_place(found[0]["loc"]) or None, code=code)


def _told(kind: str, place: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"{place}: not a field of this server: leave it out, or correct its name"
    return f"{place}: {message}" if place else message


def _place(location: tuple[int | str, ...]) -> str:
    """Where a mistake is, as in messages.0.content."""
    names = (str(one) for one in location)  # pydantic names the member of a union too
    return ".".join(name[:_MOST_NAME] for name in names if name != "str" and "[" not in name)
