"""The config of a model that starts from random weights: its base's, and what is otherwise."""

from collections.abc import Mapping
from typing import Any

from videonsa.errors import ModelError, UsageError
from videonsa.models.checkpoints.validation import checked_fields
from videonsa.models.config import VideoNSAConfig


def shaped(config: VideoNSAConfig, changes: Mapping[str, Any]) -> VideoNSAConfig:
    """A config with other fields (`model.shape`); a list of layer types is made anew.

    Raises:
        UsageError: a field that it does not have, or values that do not fit together.
    """
    if not changes:
        return config
    fields = config.to_dict()
    fields["text_config"].pop("layer_types", None)
    merged = _merged(fields, changes, "model.shape")
    try:
        checked_fields(merged, "model.shape", remedy="change it")
        made: VideoNSAConfig = VideoNSAConfig.from_dict(merged)
    except ModelError as error:
        raise UsageError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"model.shape: {error}: change it") from error
    return made


def _merged(fields: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in changes.items():
        if name not in fields:
            raise UsageError(f"{where}.{name}: want one of {', '.join(sorted(fields))}")
        inner = fields[name]
        is_part = isinstance(inner, Mapping)
        if is_part and not isinstance(value, Mapping):
            raise UsageError(f"{where}.{name}={value!r}: want names with values below it")
        merged[name] = _merged(inner, value, f"{where}.{name}") if is_part else value
    return merged
