"""`quantization_config` of a config.json: the stored weights that are read, and what others are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_MOST_GROUP = 2**20
_FLOATS = "take the model's float weights, which --weights {} quantises while loading"
_IN_FP8 = ("fp8", "fbgemm_fp8")
_OTHERS = _FLOATS.format("int8 or int4") + ", or an AWQ checkpoint; no further package helps"


class AwqFormat(NamedTuple):
    """How AWQ weights are stored: int4 in the GEMM layout, with zero points."""

    group_size: int
    """Inputs that share a scale and a zero point; -1 is all of them."""


class Refusal(NamedTuple):
    """Why stored weights are not read."""

    problem: str
    remedy: str


def stated_awq(config: Mapping[str, Any]) -> AwqFormat | None:
    """The format of the AWQ weights that a config states; None where it states no AWQ.

    Args:
        config: what config.json holds, which `refusal` has nothing against.
    """
    for part in (config, config.get("text_config") or {}):
        stated = part.get("quantization_config")
        if stated is not None and _method(stated) == "awq":
            return AwqFormat(_first(stated, "group_size", "q_group_size", default=128))
    return None


def refusal(stated: Mapping[str, Any]) -> Refusal | None:
    """What is wrong with a `quantization_config`; None where its weights are read."""
    method = _method(stated)
    if method == "awq":
        return _refused_awq(stated)
    kind = ", ".join([method or "a method it does not name", *_details(stated)])
    return Refusal(
        f"quantization_config says that the weights are quantised ({kind}), and such are not read",
        _FLOATS.format("fp8") if method in _IN_FP8 else _OTHERS,
    )


def _method(stated: Mapping[str, Any]) -> str:
    method = stated.get("quant_method")
    return _word(method).lower() if isinstance(method, str) else ""


def _details(stated: Mapping[str, Any]) -> list[str]:
    """Bits and format, as the methods state them."""
    bits = _first(stated, "bits", "w_bit", default=None)
    for name, count in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        bits = count if bits is None and stated.get(name) is True else bits
    found = [f"{bits} bits"] if type(bits) is int and 0 < bits < 64 else []
    layout = stated.get("format")
    return [*found, _word(layout)] if isinstance(layout, str) and layout else found


def _word(text: str) -> str:
    """A name as it is printed: short, in one line."""
    return "-".join(text[:40].split())


def _refused_awq(stated: Mapping[str, Any]) -> Refusal | None:
    """Only what AutoAWQ calls GEMM is read, as in Qwen's own checkpoints."""
    bits = _first(stated, "bits", "w_bit", default=4)
    group = _first(stated, "group_size", "q_group_size", default=128)
    layout = _first(stated, "version", "format", "checkpoint_format", default="gemm")
    zeros, backend = stated.get("zero_point", True), stated.get("backend")
    is_group = type(group) is int and (group == -1 or 0 < group <= _MOST_GROUP)
    for field, value, fits, wanted in (
        ("bits", bits, bits == 4, "4"),
        ("group_size", group, is_group, "a whole number of inputs, or -1"),
        ("version", layout, str(layout).lower() == "gemm", "'gemm'"),
        ("zero_point", zeros, zeros is True, "true"),
        ("backend", backend, backend != "llm-awq", "another: its layout differs"),
    ):
        if not fits:
            return Refusal(
                f"quantization_config.{field} of AWQ weights is {repr(value)[:60]}, want {wanted}",
                "take a checkpoint of int4 in the GEMM layout, or the model's float weights",
            )
    return None


def _first(stated: Mapping[str, Any], *names: str, default: Any) -> Any:
    """The field by the first of its names that is there."""
    return next((stated[name] for name in names if stated.get(name) is not None), default)
