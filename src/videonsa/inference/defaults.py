"""How a model samples a video unless told otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from videonsa.data.agreement import sampling_values
from videonsa.inference.locate import locate_model, read_json
from videonsa.inference.shapes import ModelShape
from videonsa.video.sampling import Mode, SamplingSpec

SETTINGS_FILE = "video_preprocessor_config.json"
IMAGE_SETTINGS_FILE = "preprocessor_config.json"
QWEN_IMAGE_PIXELS = (4 * 28**2, 16_384 * 28**2)
"""Fewest and most pixels of an image in Qwen2.5-VL's own settings."""
_CONTRADICTING = ("num_frames", "min_pixels", "max_pixels")
"""Other words of transformers for what `fps` and `size` say."""
_MAXIMA = (("max_frames", "min_frames"), ("max_pixels", "min_pixels"))


class SamplingChanges(TypedDict, total=False):
    """The fields of `SamplingSpec` that a user changes; None leaves one as it is."""

    fps: float | None
    num_frames: int | None
    timestamps: Sequence[float] | None
    start: float | None
    end: float | None
    max_frames: int | None
    max_pixels: int | None
    max_tokens: int | None
    mode: Mode | None


def sampling_of_shape(shape: ModelShape) -> SamplingSpec:
    """The defaults of `SamplingSpec` with the patch sizes of a model, and Qwen's for an image."""
    vision = shape.vision
    return SamplingSpec(
        image_pixels=QWEN_IMAGE_PIXELS,
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )


def default_sampling(model: str | Path, shape: ModelShape) -> SamplingSpec:
    """What a model's folder asks for, or the defaults of `SamplingSpec`.

    A folder states them in video_preprocessor_config.json, in the words of transformers: `fps`,
    `min_frames`, `max_frames` and `size`, whose edges are pixels of a frame. The pixels of an image
    alone are those of preprocessor_config.json; without one, of a frame where the folder states
    these, since the model saw no other, else Qwen2.5-VL's.
    """
    base = sampling_of_shape(shape)
    folder = locate_model(model)
    video, image = (
        (read_json(folder, name) if Path(folder).is_dir() else None) or {}
        for name in (SETTINGS_FILE, IMAGE_SETTINGS_FILE)
    )
    least, most = _pixels_in(video)
    wishes: dict[str, Any] = {
        "fps": video.get("fps"),
        "min_frames": video.get("min_frames"),
        "max_frames": video.get("max_frames"),
        "min_pixels": least,
        "max_pixels": most,
    }
    changed = replace(base, **{name: value for name, value in wishes.items() if value is not None})
    least, most = _pixels_in(image)
    if most is not None:
        return replace(changed, image_pixels=(1 if least is None else least, most))
    return replace(changed, image_pixels=None) if wishes["max_pixels"] is not None else changed


def _pixels_in(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """The fewest and the most pixels that settings state, in either of transformers' ways."""
    size = settings.get("size") or {}
    least, most = settings.get("min_pixels"), settings.get("max_pixels")
    if least is None:
        least = size.get("shortest_edge")
    return least, size.get("longest_edge") if most is None else most


def settings_of_sampling(sampling: SamplingSpec, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder states so that `default_sampling` gives this sampling.

    Args:
        sampling: by rate.
        stated: what the settings file states beside it, which is kept.
    """
    values = sampling_values(sampling)
    size = {"shortest_edge": values.pop("min_pixels"), "longest_edge": values.pop("max_pixels")}
    kept = {name: value for name, value in stated.items() if name not in _CONTRADICTING}
    return {**kept, **values, "size": size}


def change_sampling(base: SamplingSpec, **changes: Unpack[SamplingChanges]) -> SamplingSpec:
    """`base` with the fields the user asked for; its minima give way to the user's maxima.

    Raises:
        UsageError: a field outside its domain.

    """
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if "max_pixels" in given:
        given.setdefault("image_pixels", None)
    if given.keys() & {"num_frames", "timestamps"}:
        given.setdefault("fps", None)
    for maximum, minimum in _MAXIMA:
        bound, least = given.get(maximum), getattr(base, minimum)
        if least is not None and isinstance(bound, int) and 1 <= bound < least:
            given[minimum] = bound
    return replace(base, **given)
