"""`VideoNSAConfig`: Qwen2.5-VL's config and the choices of the hybrid attention."""

from dataclasses import asdict, fields
from typing import Any, Literal

from videonsa.errors import ModelError
from videonsa.models._hf import Qwen2_5_VLConfig
from videonsa.ops.spec import NSASpec

ATTENTIONS = ("nsa", "dense")
GATE_INITS = ("half", "released")


def spec_to_dict(spec: NSASpec) -> dict[str, Any]:
    """The fields of a spec as JSON keeps them: tuples become lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(spec).items()
    }


def spec_from_dict(options: dict[str, Any]) -> NSASpec:
    """The spec of a config's `nsa` field; fields that it leaves out have the paper's values.

    Raises:
        ModelError: a field that no spec has, or a value outside its domain.
    """
    known = {field.name for field in fields(NSASpec)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ModelError(f"config field nsa has {unknown}: want only {sorted(known)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return NSASpec(**values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"config field nsa cannot be used: {error}") from error


class VideoNSAConfig(Qwen2_5_VLConfig):
    """Config of `VideoNSAForConditionalGeneration`.

    Beside the fields of `Qwen2_5_VLConfig`:

    * `nsa`: an `NSASpec`, or its fields as a dict; None is the paper's. Kept as a dict and
      complete, so a saved config states every choice. Read it through `nsa_spec`.
    * `attention`: "nsa", or "dense" for plain Qwen2.5-VL attention without gates.
    * `gate_init`: how fresh gates start, "half" (every gate 0.5) or "released" (normal weights).
    """

    model_type = "videonsa"

    nsa: dict[str, Any] | NSASpec | None = None
    attention: Literal["nsa", "dense"] = "nsa"
    gate_init: Literal["half", "released"] = "half"

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete and check the fields of this class, then those of Qwen2.5-VL."""
        for name, choices in (("attention", ATTENTIONS), ("gate_init", GATE_INITS)):
            if getattr(self, name) not in choices:
                raise ModelError(f"{name}={getattr(self, name)!r}: want one of {choices}")
        spec = self.nsa if isinstance(self.nsa, NSASpec) else spec_from_dict(self.nsa or {})
        self.nsa = spec_to_dict(spec)
        super().__post_init__(**kwargs)

    @property
    def nsa_spec(self) -> NSASpec:
        """The attention's spec, built from `nsa`."""
        return self.nsa if isinstance(self.nsa, NSASpec) else spec_from_dict(self.nsa or {})
