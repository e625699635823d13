"""`read_checkpoint`: what a checkpoint holds, each weight accounted for, before any is loaded."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open

from videonsa.errors import ModelError
from videonsa.models._hf import StrictDataclassError
from videonsa.models.checkpoints.adapters import is_adapter
from videonsa.models.checkpoints.auto_map import AUTO_MAP
from videonsa.models.checkpoints.awq import with_weights
from videonsa.models.checkpoints.generation_config import read_generation
from videonsa.models.checkpoints.hub import FILES, WEIGHTS, model_folder
from videonsa.models.checkpoints.quantization_config import stated_awq
from videonsa.models.checkpoints.stored import (
    FLOATS,
    StoredTensor,
    has_gates,
    is_gate,
    listed,
    read_json,
    read_stored,
)
from videonsa.models.checkpoints.validation import check_nsa, checked_fields
from videonsa.models.config import (
    QWEN,
    VideoNSAConfig,
    check_heads,
    fields_for_weights,
)
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import DENSE, named_method
from videonsa.ops.spec import NSASpec
from videonsa.ops.stated_spec import spec_to_dict
from videonsa.parsing import one_line

Stored = Mapping[str, StoredTensor]

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"

_ROWS_COMPARED = 8192
_LAYER = re.compile(r"^model\.language_model\.layers\.(\d+)\.")
_BLOCK = re.compile(r"^model\.visual\.blocks\.(\d+)\.")
_OF_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|weight_scale(_inv)?|weight_packed|weight_format|SCB"
    r"|weight\.(absmax|quant_map|quant_state\..*|nested_absmax))$"
)
"""What AWQ, GPTQ, FP8, compressed-tensors and bitsandbytes store beside or in place of a weight."""
CONFIG_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers raises where it does not take the fields of a config.json together."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds, checked by name, shape and dtype, but not loaded."""

    folder: Path
    config: VideoNSAConfig
    tensors: Stored
    """By the names of the model's parameters, in the order of their files."""
    notes: tuple[str, ...]

    @property
    def is_awq(self) -> bool:
        """Whether weights are stored as int4, to be dequantised."""
        return any(tensor.parts for tensor in self.tensors.values())

    @property
    def size(self) -> int:
        """Bytes of the files of weights."""
        return sum(file.stat().st_size for file in {one.file for one in self.tensors.values()})


def read_checkpoint(
    model: str | Path,
    *,
    attention: str | None = None,
    fresh_gates: bool = False,
    gate_init: Literal["half", "released"] | None = None,
    nsa_spec: NSASpec | None = None,
    revision: str | None = None,
    without_gates_by: str = DENSE,
) -> Checkpoint:
    """Look at a checkpoint and choose its config, without loading a weight.

    Args:
        model: a folder, or an id of the Hugging Face hub, which is then downloaded.
        attention: the field of the config, in place of the one of the weights.
        fresh_gates: as in `load_model`.
        gate_init: how fresh gates start; None is what the config says.
        nsa_spec: likewise.
        revision: as in `load_model`.
        without_gates_by: name of the method that attends where the model has no gates.

    Raises:
        ModelError: as `load_model`.
        UsageError: a revision of a folder.
    """
    # A config that is refused is refused before gigabytes are downloaded.
    folder = model_folder(model, revision=revision)
    if is_adapter(folder):
        raise ModelError(
            f"{folder} holds a LoRA adapter and no weights: want a whole checkpoint here; 'ask' "
            "and 'eval' take adapters"
        )
    awq = stated_awq(read_fields(folder)[0])
    folder = model_folder(model, revision=revision, patterns=(*FILES, *WEIGHTS))
    tensors = read_stored(folder)
    if awq is not None:
        tensors = with_weights(tensors, awq, str(folder))
    given = {
        "attention": attention,
        "gate_init": gate_init,
        "nsa": None if nsa_spec is None else spec_to_dict(nsa_spec),
    }
    dtypes = (tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS)
    dtype = next((str(FLOATS[name]).removeprefix("torch.") for name in dtypes), None)
    dtype = "bfloat16" if awq is not None else dtype
    config, notes = choose_config(
        folder,
        tensors,
        fresh_gates=fresh_gates,
        dtype=dtype,
        given=given,
        without_gates_by=without_gates_by,
    )
    _check_weights(folder, config, tensors, fresh_gates=fresh_gates and not has_gates(tensors))
    read_generation(folder)  # what is wrong in it is told before weights are read
    return Checkpoint(folder, config, tensors, notes)


def read_fields(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config.json of a folder: as it stands, and what the model reads of it, checked.

    Raises:
        ModelError: it is not there, or `checked_fields` refuses it.
    """
    path = folder / "config.json"
    stated = read_json(path, "the folder of a checkpoint")
    return stated, checked_fields(stated, str(path))


def choose_config(
    folder: Path,
    names: Collection[str],
    *,
    fresh_gates: bool = False,
    dtype: str | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
    without_gates_by: str = DENSE,
) -> tuple[VideoNSAConfig, tuple[str, ...]]:
    """The config for the weights of a folder, and what to say about it.

    Args:
        folder: with a config.json.
        names: of the weights; none where only the config is known, which is then believed.
        fresh_gates: as in `load_model`.
        dtype: of the weights, for a config that states none.
        given: fields in place of the config's; None leaves one as it is.
        without_gates_by: as in `read_checkpoint`.

    Raises:
        ModelError: a config that cannot be used, quantised weights that it does not state, or gates
            that are missing.
    """
    stated, fields = read_fields(folder)
    if stated_awq(stated) is None:
        _check_not_quantised(folder, names)
    released = fields.pop("model_type") == QWEN
    if released:
        fields |= fields_for_weights(stated, names)
    believed = fields.get("gates")
    if believed is None:
        believed = named_method(fields["attention"], NSASpec()).uses_gates
    gated = has_gates(names) if names else believed
    if given.get("attention") is not None:
        fields.pop("gates", None)  # the layers get those that are asked for
    fields |= {name: value for name, value in given.items() if value is not None}
    fields.setdefault("dtype", dtype)
    check_nsa(fields.get("nsa") or {}, str(folder))  # also of an adapter, or the released one
    try:
        config: VideoNSAConfig = VideoNSAConfig.from_dict(fields)
    except CONFIG_ERRORS as error:
        raise _bad_config(folder, error) from error
    if config.gates and not gated and not fresh_gates:
        raise without_gates(str(folder))
    check_heads(config, str(folder))
    notes = _notes(
        config,
        gated=gated,
        released=released and given.get("nsa") is None,
        without_gates_by=without_gates_by,
    )
    named = [part.get("auto_map") for part in (stated, fields)]
    if any(code and code != AUTO_MAP for code in named):
        notes = (*notes, "config.json names code of the checkpoint (auto_map): it is not run")
    return config, notes


def without_gates(where: str) -> ModelError:
    """What to raise where NSA is wanted of weights without gates."""
    return ModelError(
        f"the weights in {where} have no gates (self_attn.g_proj_1, g_proj_2): use "
        "method='dense' (--method dense), or fresh_gates=True (--fresh-gates) for "
        "untrained ones"
    )


def _check_not_quantised(folder: Path, names: Collection[str]) -> None:
    found = sorted(filter(_OF_QUANTISED.search, names))
    if found:
        raise ModelError(
            f"the weights in {folder} are quantised ({listed(found, 2)}), and config.json has no "
            "quantization_config that says how: download both again, from one place, or take the "
            "model's float weights"
        )


def _notes(
    config: VideoNSAConfig, *, gated: bool, released: bool, without_gates_by: str
) -> tuple[str, ...]:
    spec, name = config.nsa_spec, without_gates_by
    if not config.gates:
        if gated:
            return (f"{name} attention was asked for: the gates of these weights are left out",)
        return (f"these weights have no gates: attention is {name}",)
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
    _check_counts(folder, config, tensors)
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
        and not (not config.gates and is_gate(name))
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


def _check_counts(folder: Path, config: VideoNSAConfig, tensors: Stored) -> None:
    """Before a model is built as large as its config says, even if without values."""
    for pattern, field, wanted in (
        (_LAYER, "num_hidden_layers", config.text_config.num_hidden_layers),
        (_BLOCK, "vision_config.depth", config.vision_config.depth),
    ):
        found = {match[1] for name in tensors if (match := pattern.match(name))}
        if len(found) != wanted:
            raise ModelError(
                f"{folder / 'config.json'}: {field} is {wanted}, but the weights have "
                f"{len(found)} of these layers: download both again, from one place"
            )


def is_ignored(name: str) -> bool:
    """Whether a tensor is a buffer that old checkpoints hold and the model computes."""
    return name.endswith("rotary_emb.inv_freq")


def _check_tied(folder: Path, head: StoredTensor, embedding: StoredTensor) -> None:
    """Refuse a head that is stored though it is tied, unless it equals the embedding."""
    if head.parts or embedding.parts or not _equal(head, embedding):
        raise ModelError(
            f"{folder}: config.json ties {head.name} to {embedding.name}, but they are stored with "
            "different values: set tie_word_embeddings to false if the head has weights of its "
            "own, or download both again"
        )


def _equal(head: StoredTensor, embedding: StoredTensor) -> bool:
    with safe_open(head.file, "pt") as first, safe_open(embedding.file, "pt") as second:
        ours, theirs = first.get_slice(head.name), second.get_slice(embedding.name)
        starts = range(0, head.shape[0], _ROWS_COMPARED)
        rows = [slice(start, start + _ROWS_COMPARED) for start in starts]
        return all(torch.equal(ours[part].float(), theirs[part].float()) for part in rows)


def _parameter_shapes(folder: Path, config: VideoNSAConfig) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            model = VideoNSAForConditionalGeneration(config)
    except CONFIG_ERRORS as error:
        raise _bad_config(folder, error) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _bad_config(folder: Path, error: BaseException) -> ModelError:
    return ModelError(
        f"{folder / 'config.json'} cannot be used ({one_line(error)}): download it again"
    )
