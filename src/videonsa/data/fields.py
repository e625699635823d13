"""The fields of a row: which are used, which drop the row, and which are counted as not read."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from videonsa.data.reasons import DropError, Reason

PATHS = ("path", "video", "image", "url", "video_url", "image_url")
"""Fields with the path of a video or an image."""
SAMPLING = {
    "fps": "fps",
    "nframes": "num_frames",
    "min_frames": "min_frames",
    "max_frames": "max_frames",
    "min_pixels": "min_pixels",
    "max_pixels": "max_pixels",
    "total_pixels": "total_pixels",
}
"""How a video wants to be sampled: names of qwen-vl-utils, and ours of `VideoRef`."""
PIXELS = ("min_pixels", "max_pixels")
"""Those of an image."""
_LONGEST_NAME = 60


class _Fields(NamedTuple):
    """Of one kind of object in a row. Fields that are neither used nor refused are not read."""

    name: str
    used: frozenset[str]
    refused: Mapping[str, str]
    """Fields that change what is learnt, and cannot be followed: what each asks for."""


_PART_OF_A_VIDEO = dict.fromkeys(("video_start", "video_end", "start", "end"), "it is read whole")
_EXACT_SIZE = dict.fromkeys(("resized_height", "resized_width"), "its size follows from its pixels")
_BYTES = {"bytes": "want the path of a file"}
_OTHER_AIM = dict.fromkeys(
    (
        *("rejected_response", "rejected_messages", "rejected_images", "rejected_videos"),
        *("chosen", "rejected", "margin", "label", "positive_messages", "negative_messages"),
    ),
    "preferences and classes are not learnt",
)
_ROW = _Fields(
    "row",
    frozenset(
        {"id", "data_source", "conversations", "messages", "system"}
        | {"video", "videos", "image", "images"}
    ),
    {
        "objects": "boxes are not put into the text",
        "tools": "tools are not described to the model",
        **dict.fromkeys(("audio", "audios"), "sound is not read"),
        **_OTHER_AIM,
    },
)
_TURN = _Fields(
    "turn",
    frozenset({"from", "value", "role", "content", "loss"}),
    {
        **dict.fromkeys(("loss_scale", "weight", "train"), "want 'loss': true or false"),
        **dict.fromkeys(("tool_calls", "reasoning_content"), "it is not in the text"),
    },
)
_TEXT = _Fields("text", frozenset({"type", "text"}), {})
_VIDEO = _Fields(
    "video",
    frozenset({"type", *PATHS, *SAMPLING, "sample_fps"}),
    _PART_OF_A_VIDEO | _EXACT_SIZE | _BYTES,
)
_IMAGE = _Fields("image", frozenset({"type", *PATHS, *PIXELS}), _EXACT_SIZE | _BYTES)


def unread_fields(row: Mapping[str, Any], turns: list[dict[str, Any]]) -> tuple[str, ...]:
    """The fields of a row, its turns, videos and images that are not used, sorted.

    Raises:
        DropError: a field changes what is learnt and cannot be followed.

    """
    found = chain(
        _over(row, _ROW),
        *(_over(turn, _TURN) for turn in turns),
        *(_over(part, _kind_of(part)) for turn in turns for part in _objects(turn, "content")),
        *(_over(video, _VIDEO) for video in _objects(row, "video", "videos")),
        *(_over(image, _IMAGE) for image in _objects(row, "image", "images")),
    )
    return tuple(sorted(set(found)))


def _over(given: Mapping[str, Any], fields: _Fields) -> Iterator[str]:
    for name, value in given.items():
        if name in fields.used or value is None:
            continue
        why = fields.refused.get(name)
        if why is None:
            short = str(name)[:_LONGEST_NAME]
            yield short if fields is _ROW else f"{short} of a {fields.name}"
        elif value not in ("", [], {}):
            raise DropError(Reason.UNSUPPORTED, f"{name!r} of a {fields.name}: {why}")


def _objects(given: Mapping[str, Any], *names: str) -> Iterator[Mapping[str, Any]]:
    for name in names:
        value = given.get(name)
        items = value if isinstance(value, list) else [value]
        yield from (item for item in items if isinstance(item, dict))


def _kind_of(part: Mapping[str, Any]) -> _Fields:
    kind = str(part.get("type")).removesuffix("_url")
    return {"video": _VIDEO, "image": _IMAGE}.get(kind, _TEXT)
