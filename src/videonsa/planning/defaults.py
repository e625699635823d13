"""How a model samples a video unless told otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from videonsa.data.agreement import sampling_values
from videonsa.errors import ModelError
from videonsa.models.locate import locate_model
from videonsa.models.shape import ModelShape, adapter_of, planned_folder
from videonsa.parsing import one_line, read_json_object
from videonsa.video.sampling import Mode, SamplingSpec

SETTINGS_FILE = "video_preprocessor_config.json"
IMAGE_SETTINGS_FILE = "preprocessor_config.json"
QWEN_IMAGE_PIXELS = (4 * 28**2, 16_384 * 28**2)
"""Fewest and most pixels of an image in Qwen2.5-VL's own settings."""
_CONTRADICTING = ("num_frames", "min_pixels", "max_pixels")
"""Other words of transformers for what `fps` and `size` say."""
_REMEDY = "download it again, or mend it"
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


def default_sampling(
    model: str | Path,
    shape: ModelShape,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
) -> SamplingSpec:
    """What a model's files ask for, or the defaults of `SamplingSpec`.

    They state it in video_preprocessor_config.json, in the words of transformers: `fps`,
    `min_frames`, `max_frames` and `size`, whose edges are pixels of a frame. The pixels of an image
    alone are those of preprocessor_config.json; without one, of a frame where the files state
    these, since the model saw no other, else Qwen2.5-VL's.

    Args:
        model: folder, hub id or 'embedded'.
        shape: of that model.
        base: of an adapter that has no settings of its own, in place of the one that it states.
        revision: of a hub id.

    Raises:
        ModelError: a file that cannot be used.

    """
    plain = sampling_of_shape(shape)
    where = locate_model(model)
    folder = planned_folder(where, revision=revision)
    adapter = adapter_of(where, folder, base=base, revision=revision)
    if adapter is not None and not (adapter.folder / SETTINGS_FILE).exists():
        folder = planned_folder(adapter.base)
    if folder is None:
        return plain
    stated, video = _wishes(folder / SETTINGS_FILE, plain)
    least, most = _pixels_in(_settings(folder / IMAGE_SETTINGS_FILE))
    if most is not None:
        pixels = (1 if least is None else least, most)
        return _changed(video, folder / IMAGE_SETTINGS_FILE, image_pixels=pixels)
    return replace(video, image_pixels=None) if "max_pixels" in stated else video


def _wishes(path: Path, base: SamplingSpec) -> tuple[dict[str, Any], SamplingSpec]:
    """What the settings of videos change, and the sampling they make of `base`."""
    settings = _settings(path)
    least, most = _pixels_in(settings)
    wishes = {name: settings.get(name) for name in ("fps", "min_frames", "max_frames")}
    wishes |= {"min_pixels": least, "max_pixels": most}
    stated = {name: value for name, value in wishes.items() if value is not None}
    return stated, _changed(base, path, **stated)


def _settings(path: Path) -> dict[str, Any]:
    """What a file of settings states; nothing where there is none."""
    if not path.exists():
        return {}
    settings = read_json_object(path, error=ModelError, remedy=_REMEDY)
    size = settings.get("size")
    if size is not None and not isinstance(size, dict):
        raise ModelError(f"{path}: size is {str(size)[:60]!r}, want an object: {_REMEDY}")
    return settings


def _changed(base: SamplingSpec, path: Path, **stated: Any) -> SamplingSpec:
    try:
        return replace(base, **stated)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path} cannot be used ({one_line(error)}): {_REMEDY}") from error


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
    pixels = (values.pop("min_pixels"), values.pop("max_pixels"))
    kept = {name: value for name, value in stated.items() if name not in _CONTRADICTING}
    return {**kept, **values, **image_settings(pixels)}


def image_settings(pixels: tuple[float, float]) -> dict[str, Any]:
    """What a folder states of the fewest and the most pixels of an image."""
    least, most = pixels
    return {"size": {"shortest_edge": least, "longest_edge": most}}


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
