"""The arguments of `lmms-eval --model videonsa --model_args ...`, checked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from videonsa.errors import UsageError
from videonsa.evals.field.asker import TIME_LIMIT
from videonsa.parsing import read_regular
from videonsa.planning.defaults import change_sampling
from videonsa.video.sampling import SamplingSpec

_COSTS = ("device", "batch_size", "time_limit", "log", "retry_failed")
"""What no answer hangs on."""
_QUOTES = "\"'"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArgs:
    """What `--model_args` says, and of the command line the batch size and the device."""

    pretrained: str = "embedded"
    base: str | None = None
    revision: str | None = None
    method: str | None = None
    """With its options in quotes: method="nsa:block_size=64,window_size=256"."""
    weights: str = "full"
    dtype: str | None = None
    device: str | None = None
    fps: float | None = None
    max_num_frames: int | None = None
    """Most frames with `fps`; else so many, spread evenly, or all of a video that has fewer."""
    min_num_frames: int | None = None
    """Fewest frames with `fps`."""
    min_pixels: int | None = None
    """Of a frame, as `max_pixels`; also of an image."""
    max_pixels: int | None = None
    max_video_tokens: int | None = None
    """Of a video, after frames are merged."""
    system_prompt: str | None = None
    """A text, or a file that holds it; None: the task's, else Qwen2.5-VL's."""
    repetition_penalty: float | None = None
    """None is as the checkpoint states, as in `model.generate`."""
    time_limit: float = TIME_LIMIT
    """Seconds in which a video must be read, and again for an answer."""
    log: str | None = None
    """Folder of the samples, where a run resumes; None keeps none."""
    retry_failed: bool = False
    """Whether samples that failed are asked again where a run resumes."""
    batch_size: int = 1
    """Questions about the same videos that are answered side by side."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From what lmms-eval read of the command line.

        Raises:
            UsageError: an unknown argument, or a value of another kind.
        """
        kinds = {one.name: _kind(one.type) for one in fields(cls)}
        stated = {name: value for name, value in given.items() if value is not None}
        if (most := stated.pop("max_batch_size", None)) is not None:
            raise UsageError(f"max_batch_size={most}: batches have a fixed size; give --batch_size")
        if unknown := [name for name in stated if name not in kinds]:
            raise UsageError(
                f"{unknown[0]}: no argument of --model videonsa, which takes {', '.join(kinds)}"
            )
        return cls(**{name: _value(name, kinds[name], value) for name, value in stated.items()})

    def identity(self) -> dict[str, Any]:
        """What all samples of a log share."""
        stated = {one.name: getattr(self, one.name) for one in fields(self)}
        stated["system_prompt"] = self.system()
        return {name: value for name, value in stated.items() if name not in _COSTS}

    def system(self) -> str | None:
        """The system message that is asked for.

        Raises:
            UsageError: a file that cannot be read.
        """
        if self.system_prompt is None or not os.path.isfile(self.system_prompt):
            return self.system_prompt
        try:
            return read_regular(Path(self.system_prompt)).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"system_prompt={self.system_prompt}: {error}") from error

    def sampling(self, base: SamplingSpec) -> SamplingSpec:
        """How videos are sampled, given how the model does.

        Raises:
            UsageError: a value outside its domain.
        """
        has_rate = self.fps is not None
        if self.min_num_frames is not None and not has_rate:
            raise UsageError("min_num_frames without fps: give fps too, or leave it out")
        if has_rate:
            base = replace(base, num_frames=None, timestamps=None)
        if self.min_pixels is not None and self.max_pixels is None:
            base = replace(base, max_pixels=max(base.max_pixels, self.min_pixels))
        changed = change_sampling(
            base,
            fps=self.fps,
            num_frames=None if has_rate else self.max_num_frames,
            max_frames=self.max_num_frames if has_rate else None,
            max_pixels=self.max_pixels,
            max_tokens=self.max_video_tokens,
        )
        if self.min_num_frames is not None:
            changed = replace(changed, min_frames=self.min_num_frames)
        if self.min_pixels is not None:
            changed = replace(changed, min_pixels=self.min_pixels, image_pixels=None)
        return changed


def _kind(declared: Any) -> str:
    """The name of a type, without `None`."""
    name = declared.__name__ if isinstance(declared, type) else str(declared)
    return name.removesuffix(" | None")


def _value(name: str, kind: str, value: Any) -> Any:
    """A value as lmms-eval read it, of the kind of a field."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES:
        value = value[1:-1]
    if kind == "str" and not isinstance(value, bool):
        return str(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and is_number:
        return float(value)
    if kind == "int" and (is_number or str(value).isdecimal()) and float(value) == int(value):
        return int(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    raise UsageError(f"{name}={value!r}: want {'an int' if kind == 'int' else f'a {kind}'}")
