"""`load_model`: a checkpoint to a model, with every weight accounted for by name."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from videonsa.errors import BudgetError, ModelError, UsageError
from videonsa.models._hf import StrictDataclassError, quiet_loading
from videonsa.models.adapters import check_peft, is_adapter, merge_adapter, read_adapter
from videonsa.models.config import QWEN, VideoNSAConfig, fields_for_weights, spec_to_dict
from videonsa.models.generation_config import read_generation
from videonsa.models.hub import FILES, WEIGHTS, model_folder
from videonsa.models.modeling import VideoNSAForConditionalGeneration
from videonsa.models.quantised import NOTES, Weights, check_weights, quantise
from videonsa.models.stored import (
    FLOATS,
    StoredTensor,
    has_gates,
    is_gate,
    listed,
    read_json,
    read_stored,
)
from videonsa.ops.spec import NSASpec
from videonsa.parsing import one_line

Stored = Mapping[str, StoredTensor]
DeviceMap = Literal["auto"] | dict[str, int | str]

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"

_ROWS_COMPARED = 8192
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
    adapter: Path | None
    """The folder of the LoRA adapter that is merged into the weights."""
    notes: tuple[str, ...]
    """One line each: choices that were made for these weights."""

    def folder_with(self, file: str) -> Path:
        """The adapter's folder if it has such a file, else that of the weights."""
        if self.adapter is not None and (self.adapter / file).is_file():
            return self.adapter
        return self.folder


class Checkpoint(NamedTuple):
    """What a checkpoint holds, checked by name, shape and dtype, but not loaded."""

    folder: Path
    config: VideoNSAConfig
    tensors: Stored
    """By the names of the model's parameters, in the order of their files."""
    notes: tuple[str, ...]


def load_model(
    model: str | Path,
    *,
    base: str | Path | None = None,
    attention: Literal["nsa", "dense"] | None = None,
    fresh_gates: bool = False,
    nsa_spec: NSASpec | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    weights: Weights = "full",
) -> LoadedModel:
    """Load a VideoNSA or Qwen2.5-VL checkpoint (safetensors, either layout of names).

    Weights of Qwen2.5-VL have no gates: they run with dense attention, and `notes` says so.
    Weights with gates under Qwen2.5-VL's config are the released VideoNSA's: they run with its
    preset, and `notes` says so.

    A LoRA adapter is merged into its base, and `notes` says so.

    Args:
        model: a folder, or an id of the Hugging Face hub; of a checkpoint, or of a LoRA adapter in
            peft's format.
        base: of an adapter, in place of the one that it states.
        attention: "nsa" or "dense"; None is what the weights were trained with.
        fresh_gates: allow "nsa" on weights without gates; they then start as `gate_init` says.
        nsa_spec: in place of the one of the weights.
        dtype: None is the one of the config, or of the weights.
        device: None is the CPU.
        device_map: in place of `device`: "auto" shares the layers out among the GPUs, a mapping
            says where each part goes (by accelerate; hidden states and masks follow the layers).
        weights: "int8" or "int4" quantises the projections and MLPs of the decoder layers (by
            torchao), layer by layer on the device.

    Raises:
        UsageError: "int4" elsewhere than on a GPU, or a device map with what excludes it.
        ModelError: no such model, an unreachable hub, an unreadable file, a config of another
            model, weights that are missing, unexpected or of another shape, gates that are missing,
            an adapter beside whole weights, or the package for adapters, quantised weights or
            device maps.
        BudgetError: the weights do not fit the device.
    """
    place = torch.device(device or "cpu")
    check_weights(weights, place)
    placing: dict[str, Any] = {}
    if device_map is not None:
        check_device_map(device_map, device, weights)
        placing = {"device_map": device_map}
    adapter = read_adapter(model_folder(model, patterns=(*FILES, *WEIGHTS)), base=base)
    asked: dict[str, Any] = {
        "attention": attention,
        "fresh_gates": fresh_gates,
        "nsa_spec": nsa_spec,
    }
    if adapter is not None:
        if device_map is not None:
            raise UsageError("device_map with a LoRA adapter: load it on one device")
        check_peft()
        model, asked = adapter.base, adapter.asked_of_base(**asked)
    folder, config, tensors, notes = read_checkpoint(model, **asked)
    fresh_gates = asked["fresh_gates"]
    generation, not_applied = read_generation(folder)
    placing["generation_config"] = generation
    size = sum(path.stat().st_size for path in {tensor.file for tensor in tensors.values()})
    with _out_of_memory(size, place):
        with quiet_loading(show_progress=size >= _SHOW_PROGRESS_FROM):
            loaded = _read_weights(
                folder, config=config, dtype=dtype or "auto", fresh_gates=fresh_gates, **placing
            )
            if adapter is not None:
                spec = None if config.attention == "dense" else config.nsa_spec
                merge_adapter(loaded, adapter, dense=spec is None)
                notes = adapter.notes(notes, spec=spec, base=tensors)
        quantise(loaded, weights, place)
        placed = loaded.to(place) if device_map is None else loaded
    notes = (*notes, *(() if weights == "full" else (NOTES[weights],)), *not_applied)
    return LoadedModel(
        model=placed.eval(),
        folder=folder,
        adapter=None if adapter is None else adapter.folder,
        notes=notes,
    )


def _read_weights(folder: Path, **options: Any) -> VideoNSAForConditionalGeneration:
    try:
        model: VideoNSAForConditionalGeneration = VideoNSAForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, **options
        )
    except torch.OutOfMemoryError:  # a RuntimeError too
        raise
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"the weights in {folder} cannot be loaded ({one_line(error)}): download them again"
        ) from error
    return model


@contextmanager
def _out_of_memory(size: int, place: torch.device) -> Iterator[None]:
    """Turn running out of memory, with files of so many bytes, into advice."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        room = ""
        if place.type == "cuda":
            free, total = torch.cuda.mem_get_info(place)
            room = f", which has {total / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free,"
        raise BudgetError(
            f"the weights are {size / 1e9:.1f} GB on disk and do not fit {place}{room}: take "
            "--weights int8 or int4, --device-map auto over several GPUs, or a smaller model"
        ) from error


def check_device_map(
    device_map: DeviceMap, device: torch.device | str | None, weights: Weights
) -> None:
    """Refuse a device map that cannot be used.

    Raises:
        UsageError: a name other than "auto", or a device or quantised weights beside it.
        ModelError: accelerate is not installed.
    """
    if isinstance(device_map, str) and device_map != "auto":
        raise UsageError(f"device_map={device_map!r}: want 'auto' or a mapping of parts to devices")
    if device is not None:
        raise UsageError(f"device_map and device={str(device)!r}: pass one of them")
    if weights != "full":
        raise UsageError(f"device_map with weights={weights!r}: quantise on one device, or neither")
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(
            "a device map needs accelerate, which is not installed: "
            "pip install 'videonsa[multi-gpu]'"
        )


def read_checkpoint(
    model: str | Path,
    *,
    attention: Literal["nsa", "dense"] | None = None,
    fresh_gates: bool = False,
    gate_init: Literal["half", "released"] | None = None,
    nsa_spec: NSASpec | None = None,
) -> Checkpoint:
    """Look at a checkpoint and choose its config, without loading a weight.

    Args:
        model: a folder, or an id of the Hugging Face hub, which is then downloaded.
        attention: as in `load_model`.
        fresh_gates: as in `load_model`.
        gate_init: how fresh gates start; None is what the config says.
        nsa_spec: as in `load_model`.

    Raises:
        ModelError: as `load_model`.
    """
    folder = model_folder(model, patterns=(*FILES, *WEIGHTS))
    if is_adapter(folder):
        raise ModelError(
            f"{folder} holds a LoRA adapter and no weights: want a whole checkpoint here; 'ask' "
            "and 'eval' take adapters"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: want the folder of a checkpoint")
    tensors = read_stored(folder)
    given = {
        "attention": attention,
        "gate_init": gate_init,
        "nsa": None if nsa_spec is None else spec_to_dict(nsa_spec),
    }
    config, notes = _choose(folder, tensors, fresh_gates, given)
    _check_weights(folder, config, tensors, fresh_gates=fresh_gates and not has_gates(tensors))
    return Checkpoint(folder, config, tensors, notes)


def _choose(
    folder: Path, tensors: Stored, fresh_gates: bool, given: dict[str, Any]
) -> tuple[VideoNSAConfig, tuple[str, ...]]:
    """The config for these weights, and what to say about it."""
    fields = read_json(folder / "config.json", "the folder of a checkpoint")
    kind = fields.pop("model_type", None)
    if kind not in (QWEN, VideoNSAConfig.model_type):
        raise ModelError(
            f"{folder} holds a model of type {kind!r}: want Qwen2.5-VL ({QWEN!r}) or 'videonsa'"
        )
    gated = has_gates(tensors)
    if kind == QWEN:
        fields |= fields_for_weights(fields, tensors)
    fields |= {name: value for name, value in given.items() if value is not None}
    try:
        config: VideoNSAConfig = VideoNSAConfig.from_dict(fields)
    except _CONFIG_ERRORS as error:
        raise _bad_config(folder, error) from error
    if config.attention == "nsa" and not gated and not fresh_gates:
        raise ModelError(
            f"the weights in {folder} have no gates (self_attn.g_proj_1, g_proj_2): use "
            "attention='dense' (--attention dense), or fresh_gates=True (--fresh-gates) for "
            "untrained ones"
        )
    chosen = kind == QWEN and given["nsa"] is None
    return config, _notes(config, gated=gated, released=chosen)


def _notes(config: VideoNSAConfig, *, gated: bool, released: bool) -> tuple[str, ...]:
    spec = config.nsa_spec
    if config.attention == "dense":
        if gated:
            return ("dense attention was asked for: the gates of these weights are left out",)
        return ("these weights have no gates: attention is dense",)
    if not gated:
        return (f"the gates are fresh (gate_init {config.gate_init!r}) and untrained",)
    if released:
        return (
            "gates in a Qwen2.5-VL checkpoint: taken for the released VideoNSA, preset 'released' "
            f"(compressed_mask {spec.compressed_mask!r}, temporal_ids {spec.temporal_ids!r})",
        )
    return ()


def _check_weights(
    folder: Path, config: VideoNSAConfig, tensors: Stored, *, fresh_gates: bool
) -> None:
    """Compare the weights on disk with the parameters of the model, without reading them."""
    expected = _parameter_shapes(folder, config)
    optional = {HEAD} if config.tie_word_embeddings else set()
    if fresh_gates:
        optional |= set(filter(is_gate, expected))
    missing = [
        f"{name} {list(shape)}"
        for name, shape in expected.items()
        if name not in tensors and name not in optional
    ]
    unexpected = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name not in expected
        and not is_ignored(name)
        and not (config.attention == "dense" and is_gate(name))
    ]
    known = {name: tensor for name, tensor in tensors.items() if name in expected}
    reshaped = [
        f"{name} is {list(tensor.shape)}, wanted {list(expected[name])}"
        for name, tensor in known.items()
        if tensor.shape != expected[name]
    ]
    retyped = [f"{n} is {t.dtype}" for n, t in known.items() if t.dtype not in FLOATS]
    problems = [
        f"{title} {listed(names)}"
        for title, names in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("of another shape:", reshaped),
            (f"of another dtype than {', '.join(FLOATS)}:", retyped),
        )
        if names
    ]
    if problems:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(problems)}: "
            "download both again, from one place"
        )
    if config.tie_word_embeddings and HEAD in tensors:
        _check_tied(folder, tensors[HEAD], tensors[EMBEDDING])


def is_ignored(name: str) -> bool:
    """Whether a tensor is a buffer that old checkpoints hold and the model computes."""
    return name.endswith("rotary_emb.inv_freq")


def _check_tied(folder: Path, head: StoredTensor, embedding: StoredTensor) -> None:
    """Refuse a head that is stored though it is tied, unless it equals the embedding."""
    with safe_open(head.file, "pt") as first, safe_open(embedding.file, "pt") as second:
        ours, theirs = first.get_slice(head.name), second.get_slice(embedding.name)
        for start in range(0, head.shape[0], _ROWS_COMPARED):
            rows = slice(start, start + _ROWS_COMPARED)
            if not torch.equal(ours[rows].float(), theirs[rows].float()):
                raise ModelError(
                    f"{folder}: config.json ties {head.name} to {embedding.name}, but they are "
                    "stored with different values: set tie_word_embeddings to false if the head "
                    "has weights of its own, or download both again"
                )


def _parameter_shapes(folder: Path, config: VideoNSAConfig) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            model = VideoNSAForConditionalGeneration(config)
    except _CONFIG_ERRORS as error:
        raise _bad_config(folder, error) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _bad_config(folder: Path, error: BaseException) -> ModelError:
    return ModelError(
        f"{folder / 'config.json'} cannot be used ({one_line(error)}): download it again"
    )
