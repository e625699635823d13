"""`load_model`: a checkpoint to a model, with every weight accounted for by name."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from videonsa.errors import ModelError
from videonsa.models._hf import StrictDataclassError, quiet_loading, snapshot_download
from videonsa.models.config import VideoNSAConfig, spec_to_dict
from videonsa.models.modeling import VideoNSAForConditionalGeneration
from videonsa.ops.spec import NSASpec

Shapes = Mapping[str, tuple[int, ...]]

_GATE = re.compile(r"\.self_attn\.g_proj_[12]\.")
_OLD_NAMES = (
    # Qwen2.5-VL's published files, and what transformers still writes.
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.jinja")
_SHOW_PROGRESS_FROM = 2**28
"""Bytes of weights that take longer than a second to read."""
_CONFIG_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What nonsense in a config.json raises, there or while the model is put together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, and what its user should know about it."""

    model: VideoNSAForConditionalGeneration
    folder: Path
    """Where config, weights and tokenizer are on disk."""
    notes: tuple[str, ...]
    """One line each: choices that were made for these weights."""


class _Choice(NamedTuple):
    config: VideoNSAConfig
    notes: tuple[str, ...]


def load_model(
    model: str | Path,
    *,
    attention: Literal["nsa", "dense"] | None = None,
    fresh_gates: bool = False,
    nsa_spec: NSASpec | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LoadedModel:
    """Load a VideoNSA or Qwen2.5-VL checkpoint (safetensors, either layout of names).

    Weights of Qwen2.5-VL have no gates: they run with dense attention, and `notes` says so.
    Weights with gates under Qwen2.5-VL's config are the released VideoNSA's: they run with its
    preset, and `notes` says so.

    Args:
        model: a folder, or an id of the Hugging Face hub.
        attention: "nsa" or "dense"; None is what the weights were trained with.
        fresh_gates: allow "nsa" on weights without gates; they then start as `gate_init` says.
        nsa_spec: in place of the one of the weights.
        dtype: None is the one of the config, or of the weights.
        device: None is the CPU.

    Raises:
        ModelError: no such model, an unreachable hub, an unreadable file, a config of another
            model, weights that are missing, unexpected or of another shape, gates that are missing.
    """
    folder = _folder(model)
    shapes = _weight_shapes(folder)
    config, notes = _choose(folder, shapes, attention, fresh_gates, nsa_spec)
    has_gates = _has_gates(shapes)
    _check_weights(folder, config, shapes, fresh_gates=fresh_gates and not has_gates)
    size = sum(path.stat().st_size for path in _weight_files(folder))
    with quiet_loading(show_progress=size >= _SHOW_PROGRESS_FROM):
        try:
            loaded = VideoNSAForConditionalGeneration.from_pretrained(
                folder,
                config=config,
                dtype=dtype or "auto",
                fresh_gates=fresh_gates,
                local_files_only=True,
            )
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise ModelError(
                f"the weights in {folder} cannot be loaded ({_one_line(error)}): download them "
                "again"
            ) from error
    return LoadedModel(model=loaded.to(device or "cpu").eval(), folder=folder, notes=notes)


def _folder(model: str | Path) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, re.ASCII):
        raise ModelError(
            f"model {name!r} is no folder and no Hugging Face id (OWNER/NAME): check the path"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:  # the hub client lets through whatever its transport raises
        raise ModelError(
            f"model {name!r} is neither in the local cache nor reachable on the Hugging Face hub: "
            "check the id and the network, or download it and pass its folder"
        ) from error


def _read_json(path: Path, wanted: str) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}: want {wanted}")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} is not readable JSON ({_one_line(error)}): download it again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download it again")
    return content


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelError(
            f"{folder} has no model.safetensors and no model.safetensors.index.json: want a "
            "checkpoint in safetensors format"
        )
    names = _read_json(index, "the index of the shards").get("weight_map")
    if not isinstance(names, dict):
        raise ModelError(f"{index} has no weight_map of names to files: download it again")
    files = [folder / name for name in sorted(set(names.values()))]
    lacking = [path.name for path in files if not path.is_file()]
    if lacking or not files:
        raise ModelError(f"{folder} lacks {_listed(lacking) or 'every shard'}: download it again")
    return files


def _weight_shapes(folder: Path) -> Shapes:
    """Shapes of the weights on disk under the names of the model's parameters."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: want the folder of a checkpoint")
    shapes = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    shapes[_parameter_name(name)] = tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path} is no readable safetensors file ({_one_line(error)}): download it again"
            ) from error
    return shapes


def _parameter_name(name: str) -> str:
    for pattern, new in _OLD_NAMES:
        name = pattern.sub(new, name)
    return name


def _has_gates(shapes: Iterable[str]) -> bool:
    return any(_GATE.search(name) for name in shapes)


def _choose(
    folder: Path,
    shapes: Shapes,
    attention: Literal["nsa", "dense"] | None,
    fresh_gates: bool,
    nsa_spec: NSASpec | None,
) -> _Choice:
    """The config for these weights, and what to say about it."""
    fields = _read_json(folder / "config.json", "the folder of a checkpoint")
    kind = fields.pop("model_type", None)
    if kind not in ("qwen2_5_vl", VideoNSAConfig.model_type):
        raise ModelError(
            f"{folder} holds a model of type {kind!r}: want Qwen2.5-VL ('qwen2_5_vl') or 'videonsa'"
        )
    has_gates = _has_gates(shapes)
    if kind == "qwen2_5_vl":
        fields["attention"] = "nsa" if has_gates else "dense"
        if has_gates:
            fields["nsa"] = spec_to_dict(NSASpec.released())
    if attention is not None:
        fields["attention"] = attention
    if nsa_spec is not None:
        fields["nsa"] = spec_to_dict(nsa_spec)
    try:
        config: VideoNSAConfig = VideoNSAConfig.from_dict(fields)
    except _CONFIG_ERRORS as error:
        raise _bad_config(folder, error) from error
    if config.attention == "nsa" and not has_gates and not fresh_gates:
        raise ModelError(
            f"the weights in {folder} have no gates (self_attn.g_proj_1, g_proj_2): use "
            "attention='dense' (--attention dense), or fresh_gates=True (--fresh-gates) for "
            "untrained ones"
        )
    return _Choice(config, _notes(config, kind, has_gates=has_gates, given=nsa_spec is not None))


def _notes(config: VideoNSAConfig, kind: str, *, has_gates: bool, given: bool) -> tuple[str, ...]:
    spec = config.nsa_spec
    if config.attention == "dense":
        if has_gates:
            return ("dense attention was asked for: the gates of these weights are left out",)
        return ("these weights have no gates: attention is dense",)
    if not has_gates:
        return (f"the gates are fresh (gate_init {config.gate_init!r}) and untrained",)
    if kind == "qwen2_5_vl" and not given:
        return (
            "gates in a Qwen2.5-VL checkpoint: taken for the released VideoNSA, preset 'released' "
            f"(compressed_mask {spec.compressed_mask!r}, temporal_ids {spec.temporal_ids!r})",
        )
    return ()


def _check_weights(
    folder: Path, config: VideoNSAConfig, shapes: Shapes, *, fresh_gates: bool
) -> None:
    """Compare the weights on disk with the parameters of the model, without reading them."""
    expected = _parameter_shapes(folder, config)
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if fresh_gates:
        optional |= {name for name in expected if _GATE.search(name)}
    missing = [
        f"{name} {list(shape)}"
        for name, shape in expected.items()
        if name not in shapes and name not in optional
    ]
    unexpected = [
        f"{name} {list(shape)}"
        for name, shape in shapes.items()
        if name not in expected
        and not name.endswith("rotary_emb.inv_freq")
        and not (config.attention == "dense" and _GATE.search(name))
    ]
    reshaped = [
        f"{name} is {list(shapes[name])}, wanted {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = [
        f"{title} {_listed(names)}"
        for title, names in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("of another shape:", reshaped),
        )
        if names
    ]
    if problems:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(problems)}: "
            "download both again, from one place"
        )


def _parameter_shapes(folder: Path, config: VideoNSAConfig) -> Shapes:
    try:
        with torch.device("meta"):
            model = VideoNSAForConditionalGeneration(config)
    except _CONFIG_ERRORS as error:
        raise _bad_config(folder, error) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _bad_config(folder: Path, error: BaseException) -> ModelError:
    return ModelError(
        f"{folder / 'config.json'} cannot be used ({_one_line(error)}): download it again"
    )


def _listed(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _one_line(error: BaseException, most: int = 200) -> str:
    return " ".join(str(error).split())[:most] or type(error).__name__
