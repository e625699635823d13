"""The fields of a config.json, each held against its domain and against the others.

A config is written by anybody. What loads, plans or converts a model reads it through
`checked_fields`, before anything is built: what comes out is nested, complete and of bounded size.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from videonsa.errors import ModelError
from videonsa.models.checkpoints.quantization_config import refusal, stated_awq
from videonsa.models.methods import DENSE, SPARSE
from videonsa.ops.stated_spec import spec_from_dict

FAMILIES = ("qwen2_5_vl", "videonsa")
DTYPES = ("float32", "bfloat16", "float16", "float64")
TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
PAD_IDS = MappingProxyType({"image_token_id": 151655, "video_token_id": 151656})
"""Of Qwen2.5, for configs that do not state them."""
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu")
_ROPE_TYPES = ("default", "mrope", "linear", "yarn")
"""Those whose frequencies do not depend on the length: prompts are read in parts."""
_AXES = 3
"""Time, height and width of mRoPE."""

_DEFAULT_THETA, _DEFAULT_SECTIONS = 1e6, (16, 24, 24)


class _Domain(NamedTuple):
    """Values that a field may have."""

    holds: Callable[[Any], bool]
    wanted: str
    default: Any = ...
    """Of a field that is not there; without one it has to be."""


def _whole(least: int, most: int, default: Any = ...) -> _Domain:
    return _Domain(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least} to {most}",
        default,
    )


def _number(above: float, most: float, default: Any = ...) -> _Domain:
    return _Domain(
        lambda value: type(value) in (int, float) and above < value <= most,
        f"a number above {above:g}, at most {most:g}",
        default,
    )


def _one_of(*values: Any, default: Any = ...) -> _Domain:
    return _Domain(
        lambda value: any(type(value) is type(one) and value == one for one in values),
        f"one of {', '.join(map(repr, values))}",
        default,
    )


def _ids(*, several: bool) -> _Domain:
    def holds(value: Any) -> bool:
        if several and isinstance(value, list):
            return all(type(item) is int for item in value)
        return value is None or type(value) is int

    return _Domain(holds, "a token id, or null", None)


def _or_null(domain: _Domain) -> _Domain:
    """Also null, which is the default."""
    return _Domain(lambda value: value is None or domain.holds(value), domain.wanted, None)


_BOTH = MappingProxyType(
    {
        "hidden_size": _whole(1, 2**17),
        "intermediate_size": _whole(1, 2**20),
        "hidden_act": _one_of(*_ACTIVATIONS, default="silu"),
        "initializer_range": _Domain(
            lambda value: type(value) in (int, float) and 0 <= value <= 1, "from 0 to 1", 0.02
        ),
        "dtype": _or_null(_one_of(*DTYPES)),
    }
)
_TEXT = MappingProxyType(
    {
        **_BOTH,
        "vocab_size": _whole(1, 2**24),
        "num_hidden_layers": _whole(1, 2**10),
        "num_attention_heads": _whole(1, 2**12),
        "num_key_value_heads": _or_null(_whole(1, 2**12)),
        "max_position_embeddings": _whole(1, 2**31, 32768),
        "rms_norm_eps": _number(0, 1, 1e-5),
        "attention_dropout": _one_of(0, 0.0, None, default=0.0),
        "use_sliding_window": _one_of(False, None, default=False),
        "use_cache": _one_of(True, False, default=True),
        "bos_token_id": _ids(several=False),
        "eos_token_id": _ids(several=True),
        "pad_token_id": _ids(several=False),
    }
)
_VISION = MappingProxyType(
    {
        **_BOTH,
        "depth": _whole(1, 2**10),
        "num_heads": _whole(1, 2**12),
        "out_hidden_size": _whole(1, 2**17),
        "in_channels": _one_of(3, default=3),
        "patch_size": _whole(1, 2**8, 14),
        "spatial_merge_size": _whole(1, 2**5, 2),
        "temporal_patch_size": _whole(1, 2**5, 2),
        "tokens_per_second": _number(0, 1000, 4),
        "window_size": _whole(1, 2**20, 112),
        "fullatt_block_indexes": _Domain(
            lambda value: (
                isinstance(value, list | tuple)
                and all(type(item) is int and 0 <= item < 2**10 for item in value)
            ),
            "a list of block numbers",
            (7, 15, 23, 31),
        ),
    }
)
_OURS = MappingProxyType(
    {
        "attention": _one_of(SPARSE, DENSE, default=SPARSE),
        "gates": _one_of(True, False, None, default=None),
        "gate_init": _one_of("half", "released", default="half"),
        "nsa": _or_null(_Domain(lambda value: isinstance(value, dict), "an object")),
    }
)


def checked_fields(
    config: Mapping[str, Any], where: str, *, remedy: str | None = None
) -> dict[str, Any]:
    """The fields that the model reads, nested (`text_config`, `vision_config`) and complete.

    The flat layout of the published configs becomes the nested one, `torch_dtype` becomes `dtype`
    (absent where it is "auto"), ties that only `text_config` states hold for the model. Fields that
    nothing of the model reads are left out. AWQ weights are stated in float16 for the sake of their
    kernels: here they become bfloat16.

    Args:
        config: what config.json holds.
        where: that file, for the message.
        remedy: ends the message; None: what helps with a file.

    Raises:
        ModelError: another family, quantised weights other than AWQ's int4, a field outside its
            domain, or fields that do not fit each other; names the field, what it is and what was
            wanted.
    """
    try:
        return _checked(config)
    except _FieldError as error:
        raise ModelError(f"{where}: {error}: {remedy or error.remedy}") from error


class _FieldError(Exception):
    """A field, what it is and what was wanted."""

    def __init__(self, message: str, remedy: str = "download it again") -> None:
        super().__init__(message)
        self.remedy = remedy


def _refuse(field: str, value: Any, wanted: str) -> _FieldError:
    text = repr(value)
    return _FieldError(
        f"{field} is {text if len(text) <= 60 else text[:60] + '...'}, want {wanted}"
    )


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    family = _check_family(config)
    nested = config.get("text_config") is not None
    text_given = _object(config, "text_config") if nested else config
    for part in (config, text_given):
        _check_quantisation(part)
    dtype = _dtype(config)
    if dtype == "float16" and stated_awq(config):
        dtype = "bfloat16"  # float16 is what AWQ's kernels want; Qwen2.5-VL overflows in it
    text = _part(text_given, _TEXT, "text_config." if nested else "")
    vision_given = _object(config, "vision_config")
    vision = _part(_renamed(vision_given), _VISION, "vision_config.")
    text |= _check_text(text, text_given)
    vision |= _check_vision(vision, vision_given, text)
    fields: dict[str, Any] = {
        "model_type": family,
        "text_config": text | {"dtype": dtype},  # weights have one dtype
        "vision_config": vision | {"dtype": dtype},
        "tie_word_embeddings": _ties(config, text_given),
        **_token_ids(config, text["vocab_size"]),
    }
    if dtype is not None:
        fields["dtype"] = dtype
    if family == "videonsa":
        fields |= _part(config, _OURS, "")
        _check_nsa(fields["nsa"] or {})
    return fields


def _check_family(config: Mapping[str, Any]) -> str:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise _FieldError(
            f"model_type={str(family)[:60]!r}, want 'qwen2_5_vl' (Qwen2.5-VL) or 'videonsa'",
            "models of other families are not read",
        )
    return str(family)


def _object(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    if not isinstance(value, dict):
        raise _refuse(name, value, "an object of fields")
    return value


def _part(given: Mapping[str, Any], domains: Mapping[str, _Domain], prefix: str) -> dict[str, Any]:
    found = {}
    for name, domain in domains.items():
        if name == "dtype":
            found[name] = _dtype(given, prefix)
            continue
        if name not in given and domain.default is ...:
            raise _FieldError(f"{prefix}{name} is missing, want {domain.wanted}")
        value = given.get(name, domain.default)
        if name in given and not domain.holds(value):
            raise _refuse(prefix + name, value, domain.wanted)
        found[name] = value
    return found


def _dtype(given: Mapping[str, Any], prefix: str = "") -> str | None:
    """The dtype that is stated under its new name or its old; None where it is none or "auto"."""
    for name in ("dtype", "torch_dtype"):
        value = given.get(name)
        if value is None or value == "auto":
            continue
        plain = value.removeprefix("torch.") if isinstance(value, str) else value
        if plain not in DTYPES:
            raise _refuse(prefix + name, value, f"'auto' or one of {', '.join(DTYPES)}")
        return str(plain)
    return None


def _renamed(vision: Mapping[str, Any]) -> dict[str, Any]:
    """With `in_channels` where it has its older name."""
    old = {"in_channels": vision["in_chans"]} if "in_chans" in vision else {}
    return old | dict(vision)


def _ties(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    flag = _one_of(True, False)
    stated = [part.get("tie_word_embeddings", False) for part in (config, text)]
    for value in stated:
        if not flag.holds(value):
            raise _refuse("tie_word_embeddings", value, flag.wanted)
    return any(stated)


def _token_ids(config: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """The ids of vision tokens; those that the model looks for are Qwen2.5's if not stated."""
    found = dict(PAD_IDS) | {name: config[name] for name in TOKEN_IDS if name in config}
    for name, value in found.items():
        most = vocab_size if name in PAD_IDS else 2**24  # the model looks for no others
        if not _whole(0, most - 1).holds(value):
            raise _refuse(name, value, f"the id of a token, below {most} (vocab_size)")
    if len(set(found.values())) < len(found):
        raise _FieldError(f"{found} are not different ids, want each token to have its own")
    return found


def _check_text(text: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the fields of the language model together."""
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    if hidden % heads or (hidden // heads) % 2:
        raise _refuse("num_attention_heads", heads, f"{hidden} (hidden_size) / an even head size")
    kv_heads = heads if text["num_key_value_heads"] is None else text["num_key_value_heads"]
    if heads % kv_heads:
        raise _refuse("num_key_value_heads", kv_heads, f"a divisor of {heads} attention heads")
    size = hidden // heads
    if given.get("head_dim") not in (None, size):
        raise _refuse("head_dim", given["head_dim"], f"hidden_size / num_attention_heads = {size}")
    layers, kinds = text["num_hidden_layers"], given.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * layers:
        raise _refuse("layer_types", kinds, f"{layers} of 'full_attention', one a layer")
    pad = text["pad_token_id"]
    if pad is not None and not 0 <= pad < text["vocab_size"]:
        raise _refuse("pad_token_id", pad, f"a token below vocab_size, {text['vocab_size']}")
    return {
        "num_key_value_heads": kv_heads,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "rope_parameters": _text_rope(given, size),
    }


def _check_vision(
    vision: Mapping[str, Any], given: Mapping[str, Any], text: Mapping[str, Any]
) -> dict[str, Any]:
    """What follows from the fields of the vision tower together, and with the language model's."""
    hidden, heads = vision["hidden_size"], vision["num_heads"]
    if hidden % heads or (hidden // heads) % 4:
        raise _refuse(
            "vision_config.num_heads", heads, f"{hidden} (hidden_size) / a head size in fours"
        )
    if vision["out_hidden_size"] != text["hidden_size"]:
        raise _refuse(
            "vision_config.out_hidden_size",
            vision["out_hidden_size"],
            f"the language model's hidden_size, {text['hidden_size']}",
        )
    merged = vision["patch_size"] * vision["spatial_merge_size"]
    if vision["window_size"] < merged:
        raise _refuse(
            "vision_config.window_size",
            vision["window_size"],
            f"at least patch_size * spatial_merge_size = {merged} pixels",
        )
    rope = _rope(given, "vision_config.rope_parameters", ("default", "axial"), 1e4)
    return {"rope_parameters": rope | {"rope_type": "axial"}}


def _text_rope(given: Mapping[str, Any], head_size: int) -> dict[str, Any]:
    rope = _rope(given, "rope_parameters", _ROPE_TYPES, _DEFAULT_THETA)
    sections = rope.get("mrope_section", list(_DEFAULT_SECTIONS))
    whole = isinstance(sections, list | tuple) and all(type(item) is int for item in sections)
    if not whole or len(sections) < _AXES or min(sections) < 0 or sum(sections) * 2 != head_size:
        raise _refuse(
            "mrope_section",
            sections,
            "three whole numbers, of time, rows and columns, or more that go on in turn, with the "
            f"sum {head_size // 2}, half the head size",
        )
    if rope["rope_type"] in ("linear", "yarn") and not _number(0, 2**16).holds(rope.get("factor")):
        raise _refuse("rope_parameters.factor", rope.get("factor"), "a number above 0")
    kind = "default" if rope["rope_type"] == "mrope" else rope["rope_type"]
    return rope | {"rope_type": kind, "mrope_section": list(sections)}


def _rope(
    given: Mapping[str, Any], field: str, kinds: tuple[str, ...], default_theta: float
) -> dict[str, Any]:
    """The rotation's settings, from `rope_parameters` or the older `rope_scaling`."""
    rope: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = given.get(name)
        if value is not None and not isinstance(value, dict):
            raise _refuse(name, value, "an object of fields, or null")
        rope = dict(value or rope)
    kind = rope.get("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if kind not in kinds:
        raise _refuse(f"{field}.rope_type", kind, f"one of {', '.join(kinds)}")
    for name, value in rope.items():
        plain = value is None or isinstance(value, str | bool)
        finite = isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**40
        if name != "mrope_section" and not plain and not finite:
            raise _refuse(f"{field}.{name}", value, "a finite number")
    theta = rope.get("rope_theta", given.get("rope_theta", default_theta))
    if not _number(0, 2**40).holds(theta):
        raise _refuse("rope_theta", theta, "a number above 0")
    return rope | {"rope_type": kind, "rope_theta": theta}


def check_nsa(options: Mapping[str, Any], where: str) -> None:
    """Check an `nsa` that comes from elsewhere than config.json.

    Raises:
        ModelError: names the field, what it is and what was wanted.
    """
    try:
        spec_from_dict(options)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


def _check_nsa(options: Mapping[str, Any]) -> None:
    try:
        spec_from_dict(options)
    except ModelError as error:
        raise _FieldError(str(error)) from error


def _check_quantisation(part: Mapping[str, Any]) -> None:
    value = part.get("quantization_config")
    if value is None:
        return
    if not isinstance(value, dict):
        raise _refuse("quantization_config", value, "an object of fields, or none")
    refused = refusal(value)
    if refused is not None:
        raise _FieldError(refused.problem, refused.remedy)
