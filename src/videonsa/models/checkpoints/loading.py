"""`load_model`: a checkpoint to a model, with every weight accounted for by name."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from videonsa.errors import BudgetError, ModelError, UsageError
from videonsa.machine import ran_out_of_memory
from videonsa.models._hf import quiet_loading
from videonsa.models.checkpoints.adapters import Adapter, is_adapter, merge_adapter, read_adapter
from videonsa.models.checkpoints.awq import ValuesOnDisk, describe_awq
from videonsa.models.checkpoints.checkpoint import CONFIG_ERRORS, Checkpoint, read_checkpoint
from videonsa.models.checkpoints.generation_config import read_generation
from videonsa.models.checkpoints.hub import FILES, WEIGHTS, model_folder
from videonsa.models.checkpoints.quantised import NOTES, Weights, check_weights, quantise
from videonsa.models.config import stated_by
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import DENSE, AttentionMethod
from videonsa.models.methods.registry import name_of
from videonsa.parsing import one_line

DeviceMap = Literal["auto"] | dict[str, int | str]

_SHOW_PROGRESS_FROM = 2**28
"""Bytes of weights that take longer than a second to read."""


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


def load_model(
    model: str | Path,
    *,
    base: str | Path | None = None,
    method: AttentionMethod | str | None = None,
    fresh_gates: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    weights: Weights = "full",
    revision: str | None = None,
) -> LoadedModel:
    """Load a VideoNSA or Qwen2.5-VL checkpoint (safetensors, either layout of names).

    Weights of Qwen2.5-VL have no gates: they run with dense attention, and `notes` says so.
    Weights with gates under Qwen2.5-VL's config are the released VideoNSA's: they run with its
    preset, and `notes` says so.

    A LoRA adapter is merged into its base, and `notes` says so. AWQ weights of int4 are
    dequantised, one after the other, and `notes` says so.

    Args:
        model: a folder, or an id of the Hugging Face hub; of a checkpoint, or of a LoRA adapter in
            peft's format.
        base: of an adapter, in place of the one that it states.
        method: how the model attends: a text such as "nsa:window_size=128" (`parse_method`) or an
            `AttentionMethod`; None is what the weights were trained with. Gates are loaded where it
            uses them.
        fresh_gates: allow a method that uses gates on weights without; they then start as
            `gate_init` says.
        dtype: None is the one of the config, or of the weights; bfloat16 for AWQ in float16.
        device: None is the CPU.
        device_map: in place of `device`: "auto" shares the layers out among the GPUs, a mapping
            says where each part goes (by accelerate; hidden states and masks follow the layers).
        weights: "int8" or "int4" quantises the projections and MLPs of the decoder layers (by
            torchao), "fp8" those of the vision tower too, layer by layer on the device.
        revision: branch, tag or commit of a hub id.

    Raises:
        UsageError: "int4" or "fp8" where it cannot run, a device map with what excludes it, or a
            revision of a folder.
        ModelError: no such model, an unreachable hub, an unreadable file, a config of another
            model, weights that are missing, unexpected or of another shape, gates that are missing,
            an adapter beside whole weights, or the package for adapters, quantised weights or
            device maps.
        BudgetError: the weights do not fit the device.
    """
    place = torch.device(device or "cpu")
    if device_map is not None:
        check_device_map(device_map, device, weights)
    check_weights(weights, place)
    adapter = _find_adapter(model, base=base, revision=revision)
    attention, spec = stated_by(method)
    asked: dict[str, Any] = {"attention": attention, "fresh_gates": fresh_gates, "nsa_spec": spec}
    if adapter is not None:
        if device_map is not None:
            raise UsageError("device_map with a LoRA adapter: load it on one device")
        model, asked, revision = adapter.base, adapter.asked_of_base(**asked), None
    name = DENSE if method is None else name_of(method)
    checkpoint = read_checkpoint(model, revision=revision, without_gates_by=name, **asked)
    attends, text = checkpoint.config.attend_by(method), checkpoint.config.text_config
    of_method = attends.notes(text.num_hidden_layers, text.num_attention_heads)
    generation, not_applied = read_generation(checkpoint.folder)
    with _out_of_memory(checkpoint, place):
        with quiet_loading(show_progress=checkpoint.size >= _SHOW_PROGRESS_FROM):
            loaded = _read_weights(
                checkpoint,
                dtype=dtype,
                fresh_gates=asked["fresh_gates"],
                device_map=device_map,
                generation_config=generation,
            )
            if adapter is not None:
                merge_adapter(loaded, adapter, dense=not checkpoint.config.gates)
        quantise(loaded, weights, place)
        placed = loaded.to(place) if device_map is None else loaded
    placed.method = attends
    notes = _notes_on_weights(checkpoint, adapter, placed.dtype, weights, without_gates_by=name)
    return LoadedModel(
        model=placed.eval(),
        folder=checkpoint.folder,
        adapter=None if adapter is None else adapter.folder,
        notes=(*notes, *not_applied, *of_method),
    )


def _find_adapter(
    model: str | Path, *, base: str | Path | None, revision: str | None
) -> Adapter | None:
    """The adapter that a folder or hub id names; None where that is a checkpoint."""
    found = model_folder(model, revision=revision)
    if is_adapter(found):
        found = model_folder(model, revision=revision, patterns=(*FILES, *WEIGHTS))
    return read_adapter(found, base=base)


def _notes_on_weights(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    dtype: torch.dtype,
    weights: Weights,
    *,
    without_gates_by: str,
) -> tuple[str, ...]:
    """Of the checkpoint, what is merged into it, and how it is stored and run."""
    notes, config = checkpoint.notes, checkpoint.config
    if adapter is not None:
        spec = config.nsa_spec if config.gates else None
        notes = adapter.notes(
            notes, spec=spec, base=checkpoint.tensors, without_gates_by=without_gates_by
        )
    if checkpoint.is_awq:
        notes += (describe_awq(dtype, weights),)
    return notes if weights == "full" else (*notes, NOTES[weights])


def _read_weights(
    checkpoint: Checkpoint, *, dtype: torch.dtype | None, **options: Any
) -> VideoNSAForConditionalGeneration:
    """The model in host memory, or where a device map says.

    Args:
        checkpoint: where it is, and what it holds.
        dtype: None is the config's.
        **options: of `from_pretrained`.
    """
    source: Path | None = checkpoint.folder
    if checkpoint.is_awq:
        source, dtype = None, dtype or checkpoint.config.dtype
        options["state_dict"] = {
            name: ValuesOnDisk(tensor, dtype) for name, tensor in checkpoint.tensors.items()
        }
    try:
        model: VideoNSAForConditionalGeneration = VideoNSAForConditionalGeneration.from_pretrained(
            source,
            config=checkpoint.config,
            dtype=dtype or "auto",
            local_files_only=True,
            **options,
        )
    except (OSError, SafetensorError, *CONFIG_ERRORS) as error:
        if ran_out_of_memory(error):  # a RuntimeError too
            raise
        raise ModelError(
            f"the weights in {checkpoint.folder} cannot be loaded ({one_line(error)}): download "
            "them again"
        ) from error
    model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
    return model


@contextmanager
def _out_of_memory(checkpoint: Checkpoint, place: torch.device) -> Iterator[None]:
    """Turn running out of memory into advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        room = ""
        if place.type == "cuda":
            free, total = torch.cuda.mem_get_info(place)
            room = f", which has {total / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free,"
        more = ", more when dequantised," if checkpoint.is_awq else ""
        raise BudgetError(
            f"the weights are {checkpoint.size / 1e9:.1f} GB on disk{more} and do not fit {place}"
            f"{room}: take --weights int8 or int4, --device-map auto over several GPUs, or a "
            "smaller model"
        ) from error


def check_device_map(
    device_map: DeviceMap, device: torch.device | str | None, weights: Weights
) -> None:
    """Refuse a device map that cannot be used.

    Raises:
        UsageError: a name other than "auto", or a device or quantised weights beside it.
        ModelError: accelerate is not installed.
    """
    if device_map != "auto" and not isinstance(device_map, dict):
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
