"""How a model samples a video unless told otherwise."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from videonsa.inference.locate import locate_model, read_json
from videonsa.inference.shapes import ModelShape
from videonsa.video.sampling import Mode, SamplingSpec

SETTINGS_FILE = "video_preprocessor_config.json"
_MAXIMA = (("max_frames", "min_frames"), ("max_pixels", "min_pixels"))


class SamplingChanges(TypedDict, total=False):
    """The fields of `SamplingSpec` that a user changes; None leaves one as it is."""

    fps: float | None
    num_frames: int | None
    timestamps: Sequence[float] | None
    max_frames: int | None
    max_pixels: int | None
    max_tokens: int | None
    mode: Mode | None


def sampling_of_shape(shape: ModelShape) -> SamplingSpec:
    """The defaults of `SamplingSpec` with the patch sizes of a model."""
    vision = shape.vision
    return SamplingSpec(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )


def default_sampling(model: str | Path, shape: ModelShape) -> SamplingSpec:
    """What a model's folder asks for, or the defaults of `SamplingSpec`.

    A folder states them in video_preprocessor_config.json, in the words of transformers: `fps`,
    `min_frames`, `max_frames` and `size`, whose edges are pixels of a frame.
    """
    base = sampling_of_shape(shape)
    folder = locate_model(model)
    settings = read_json(folder, SETTINGS_FILE) if Path(folder).is_dir() else None
    if settings is None:
        return base
    size = settings.get("size") or {}
    wishes = {
        "fps": settings.get("fps"),
        "min_frames": settings.get("min_frames"),
        "max_frames": settings.get("max_frames"),
        "min_pixels": size.get("shortest_edge"),
        "max_pixels": size.get("longest_edge"),
    }
    return replace(base, **{name: value for name, value in wishes.items() if value is not None})


def change_sampling(base: SamplingSpec, **changes: Unpack[SamplingChanges]) -> SamplingSpec:
    """`base` with the fields the user asked for; its minima give way to the user's maxima.

    Raises:
        UsageError: a field outside its domain.

    """
    given = {name: value for name, value in changes.items() if value is not None}
    if given.keys() & {"num_frames", "timestamps"}:
        given = {"fps": None} | given
    for maximum, minimum in _MAXIMA:
        bound, least = given.get(maximum), getattr(base, minimum)
        if least is not None and isinstance(bound, int) and 1 <= bound < least:
            given[minimum] = bound
    return replace(base, **given)  # type: ignore[arg-type]
