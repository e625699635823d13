"""What lmms-eval's tasks hand over, as messages and options of this package."""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from videonsa.errors import UsageError
from videonsa.evals.field.sample_line import SampleKey
from videonsa.inference.messages import ImagePart, Message, Part, VideoPart
from videonsa.inference.sampling import AnswerOptions

NEW_TOKENS = 128
"""Where a task states no longest answer, as in lmms-eval's own Qwen2.5-VL."""
FILLED_IN = ("\n\n",)
"""What lmms-eval writes as `until` where a task states none. Its Qwen2.5-VL ignores it, and so do
the published scores: answers with a blank line would be cut."""
_KNOWN = ("max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "num_beams", "until")


def messages_of(chat: Sequence[Mapping[str, Any]], *, system: str | None) -> tuple[Message, ...]:
    """The messages of a chat in lmms-eval's form.

    Args:
        chat: of `doc_to_messages`.
        system: a system message in place of the chat's own; None keeps that.

    Raises:
        UsageError: content of another kind than text, images and videos.
    """
    told = [Message(one["role"], [*_parts(one["content"])]) for one in chat]
    if system is not None:
        told = [Message("system", [system]), *(one for one in told if one.role != "system")]
    return tuple(told)


def _parts(content: Any) -> list[Part]:
    if isinstance(content, str):
        return [content]
    return [_part(one) for one in content]


def _part(content: Mapping[str, Any]) -> Part:
    kind = content.get("type")
    if kind == "text":
        return str(content["text"])
    if kind == "image":
        return ImagePart(source=_image(content["url"]))
    if kind == "video":
        return _video(content)
    raise UsageError(f"a message holds {kind}: want text, images and videos; name another task")


def _image(url: Any) -> Any:
    """An image as data sets hold one: a path, a picture, or the bytes of a file."""
    if isinstance(url, Mapping):
        url = url.get("bytes") or url.get("path")
    image = Image.open(io.BytesIO(url)) if isinstance(url, bytes) else url
    if isinstance(image, Image.Image):
        image.load()  # a broken one fails here, with its sample
    return image


def _video(content: Mapping[str, Any]) -> VideoPart:
    """A video with its stretch, which some tasks state beside its address, others in it."""
    url, start, end = content["url"], content.get("start_time"), content.get("end_time")
    if isinstance(url, Mapping):
        start = url.get("video_start", start)
        end = url.get("video_end", end)
        url = url.get("url") or url.get("path") or url.get("video")
    if isinstance(url, os.PathLike):
        url = os.fspath(url)
    return VideoPart(
        source=url,
        start=None if start is None else float(start),
        end=None if end is None else float(end),
    )


def options_of(
    asked: Mapping[str, Any], *, key: SampleKey, repetition_penalty: float | None
) -> tuple[AnswerOptions, list[str]]:
    """How tokens are chosen, by the `generation_kwargs` of a task, and what of them is ignored.

    Raises:
        UsageError: what is not done here, such as a search with several beams.
    """
    if asked.get("num_beams") not in (None, 1):
        raise UsageError(
            f"num_beams={asked['num_beams']}: want 1, answers are written token by token; "
            "pass --gen_kwargs num_beams=1"
        )
    options, notes = AnswerOptions(max_new_tokens=int(asked.get("max_new_tokens", NEW_TOKENS))), []
    temperature = float(asked.get("temperature") or 0.0)
    if temperature > 0 and asked.get("do_sample") is False:
        notes.append(f"temperature={temperature:g} with do_sample=False: the likeliest token")
        temperature = 0.0
    options["temperature"] = temperature
    if temperature > 0:
        options["top_p"] = asked.get("top_p")
        options["top_k"] = asked.get("top_k")
        options["seed"] = _seed(key)
    until = asked.get("until") or ()
    stop = tuple(text for text in ((until,) if isinstance(until, str) else until) if text)
    if stop == FILLED_IN:
        notes.append(r"until='\n\n', which lmms-eval fills in, is ignored, as by its Qwen2.5-VL")
    elif stop:
        options["stop"] = stop
    if repetition_penalty is not None:
        options["repetition_penalty"] = repetition_penalty
    notes += [f"{name}={asked[name]!r} is ignored" for name in asked if name not in _KNOWN]
    return options, notes


def _seed(key: SampleKey) -> int:
    """Of a sample, whatever was asked before it."""
    return int.from_bytes(hashlib.sha256(key.text.encode()).digest()[:4], "big")
