"""The shape of a model, read from its config alone: parameters, context, frame factor.

Planning needs no weights. The shapes of the published models are built in, so that a plan for
them needs no network either.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from videonsa.models.checkpoints.adapters import Adapter, is_adapter, read_adapter
from videonsa.models.checkpoints.checkpoint import (
    choose_config,
    read_checkpoint,
    read_fields,
    without_gates,
)
from videonsa.models.checkpoints.hub import FILES, WEIGHTS, is_cached, model_folder
from videonsa.models.checkpoints.quantised import INT4_COLUMNS, INT4_GROUP, INT4_ROWS, Weights
from videonsa.models.checkpoints.quantization_config import stated_awq
from videonsa.models.checkpoints.stored import is_whole, stored_names
from videonsa.models.checkpoints.validation import checked_fields
from videonsa.models.config import stated_by
from videonsa.models.locate import locate_model
from videonsa.models.methods import (
    DENSE,
    AttentionMethod,
    Dense,
    named_method,
    nsa_method,
    parse_method,
)
from videonsa.models.vision import ALIGNED
from videonsa.ops.spec import NSASpec
from videonsa.ops.stated_spec import spec_from_dict, spec_to_dict

BYTES_PER_VALUE = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8})

_TEXT_KEYS = MappingProxyType(
    {
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context",
    }
)
_VISION_KEYS = MappingProxyType(
    {
        "depth": "depth",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_heads": "num_heads",
        "out_hidden_size": "out_hidden_size",
        "in_channels": "in_channels",
        "patch_size": "patch_size",
        "spatial_merge_size": "merge_size",
        "temporal_patch_size": "temporal_patch_size",
    }
)


def up_to(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionShape:
    """The vision tower: `depth` blocks over patches, then a merger of merge_size**2 patches."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int
    in_channels: int = 3
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def head_dim(self) -> int:
        """Values a head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Pixel values of one patch: 1176 for Qwen2.5-VL."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def num_parameters(self) -> int:
        """Weights and biases of the tower."""
        size, mlp = self.hidden_size, self.intermediate_size
        attention = 4 * size * size + 4 * size
        gated_mlp = 3 * size * mlp + 2 * mlp + size
        merged = size * self.merge_size**2
        merger = size + merged * merged + merged + merged * self.out_hidden_size
        block = 2 * size + attention + gated_mlp
        return self.patch_values * size + self.depth * block + merger + self.out_hidden_size

    def bytes_saved_by_fp8(self, value_bytes: int) -> int:
        """Of the blocks, whose MLPs are padded."""
        size, mlp = self.hidden_size, self.intermediate_size
        width = up_to(mlp, ALIGNED)
        linears = [(size, 3 * size), (size, size)] + [(size, width)] * 2 + [(width, size)]
        full = (4 * size * size + 3 * size * mlp) * value_bytes
        biases = 2 * (width - mlp) * value_bytes
        return self.depth * (full - _scaled_bytes(linears) - biases)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What planning has to know of a model. Sizes in values, context in tokens."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tied_embeddings: bool
    vision: VisionShape
    context: int = 128_000
    dtype: str = "bfloat16"
    weights: Weights = "full"
    is_awq: bool = False
    """Stored as int4, and dequantised when it is loaded."""
    gates: bool = False
    method: AttentionMethod = field(default_factory=Dense)

    @property
    def head_dim(self) -> int:
        """Values a head: transformers wants hidden_size = num_heads * head_dim."""
        return self.hidden_size // self.num_heads

    @property
    def linear_weights(self) -> int:
        """Weights of a layer's projections and MLP, without biases and gates."""
        size, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        return 2 * size * size + 2 * size * kv + 3 * size * self.intermediate_size

    @property
    def layer_weights(self) -> int:
        """Weights and biases of one layer."""
        size, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        gates = size * size + size + (size + 1) * 3 * self.num_heads
        biases_and_norms = size + 2 * kv + 2 * size
        return self.linear_weights + biases_and_norms + (gates if self.gates else 0)

    @property
    def num_parameters(self) -> int:
        """Weights and biases of the whole model."""
        size = self.hidden_size
        embeddings = self.vocab_size * size * (1 if self.tied_embeddings else 2)
        layers = self.num_layers * self.layer_weights
        return embeddings + layers + size + self.vision.num_parameters

    @property
    def value_bytes(self) -> int:
        """Bytes of a value in the model's dtype."""
        return BYTES_PER_VALUE[self.dtype]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, quantised as `weights` says."""
        full = self.num_parameters * self.value_bytes
        saved = self.num_layers * (self.layer_weights * self.value_bytes - self.layer_bytes)
        in_tower = self.vision.bytes_saved_by_fp8(self.value_bytes) if self.weights == "fp8" else 0
        return full - saved - in_tower

    @property
    def layer_bytes(self) -> int:
        """Bytes of the weights of one layer, quantised as `weights` says."""
        full = self.layer_weights * self.value_bytes
        if self.weights == "full":
            return full
        return full - self.linear_weights * self.value_bytes + self._quantised_bytes()

    def _quantised_bytes(self) -> int:
        """Of one layer's projections and MLP: the weights, and their scales in float32."""
        size, kv, mlp = self.hidden_size, self.num_kv_heads * self.head_dim, self.intermediate_size
        mlp = up_to(mlp, ALIGNED) if self.weights == "fp8" else mlp
        linears = [(size, size)] * 2 + [(size, kv)] * 2 + [(size, mlp)] * 2 + [(mlp, size)]
        if self.weights in ("fp8", "int8"):
            return _scaled_bytes(linears)
        # A scale and a zero in bfloat16 for each group; rows and columns are padded.
        return (
            sum(
                up_to(outer, INT4_ROWS) * up_to(inner, INT4_COLUMNS) * (INT4_GROUP // 2 + 4)
                for inner, outer in linears
            )
            // INT4_GROUP
        )

    @property
    def restored_bytes(self) -> int:
        """The largest of the weights of 8 bits, which a product takes in the model's dtype."""
        restored = self.weights == "int8"
        return self.hidden_size * self.intermediate_size * self.value_bytes if restored else 0

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in the model's dtype."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.value_bytes


def _scaled_bytes(linears: Iterable[tuple[int, int]]) -> int:
    """Weights of 8 bits of (inputs, outputs) each, and a scale in float32 an output."""
    return sum(inner * outer + outer * 4 for inner, outer in linears)


def _qwen(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, *, vision_mlp: int = 3420
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "vocab_size": 152_064,
        "tied_embeddings": False,
        "vision": VisionShape(out_hidden_size=hidden, intermediate_size=vision_mlp),
    }


def published_shape(model: str) -> ModelShape | None:
    """The shape of a published model by its Hugging Face id, from its config; None if unknown."""
    seven = _qwen(3584, 18944, 28, 28, 4)
    match model:
        case "Qwen/Qwen2.5-VL-3B-Instruct-AWQ" | "Qwen/Qwen2.5-VL-7B-Instruct-AWQ":
            floats = published_shape(model.removesuffix("-AWQ"))
            return None if floats is None else replace(floats, is_awq=True)
        case "Qwen/Qwen2.5-VL-3B-Instruct":
            small = {"vocab_size": 151_936, "tied_embeddings": True}
            return ModelShape(**(_qwen(2048, 11008, 36, 16, 2) | small))
        case "Qwen/Qwen2.5-VL-7B-Instruct":
            return ModelShape(**seven)
        case "Qwen/Qwen2.5-VL-32B-Instruct":
            return ModelShape(**_qwen(5120, 27648, 64, 40, 8, vision_mlp=3456))
        case "Qwen/Qwen2.5-VL-72B-Instruct":
            return ModelShape(**_qwen(8192, 29568, 80, 64, 8, vision_mlp=3456))
        case "Enxin/VideoNSA":
            return ModelShape(**seven, gates=True, method=nsa_method(NSASpec.released()))
    return None


def load_shape(
    model: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    method: AttentionMethod | str | None = None,
    fresh_gates: bool = False,
) -> ModelShape:
    """The shape of a model by folder, hub id or 'embedded', as loading it would give.

    Of a folder's weights the headers are read, where there are any; else the config is believed.

    Args:
        model: folder, hub id or 'embedded'; of a checkpoint or a LoRA adapter.
        base: of an adapter, in place of the one that it states.
        revision: of a hub id.
        method: as for `load_model`.
        fresh_gates: allow a method that uses gates on weights without.

    Raises:
        ModelError: an unknown or unreachable model, or one that could not be loaded.
        UsageError: a revision of a folder, or a base without an adapter.

    """
    where = locate_model(model)
    folder = planned_folder(where, revision=revision)
    adapter = adapter_of(where, folder, base=base, revision=revision)
    attention, spec = stated_by(method)
    asked: dict[str, Any] = {
        "attention": attention,
        "fresh_gates": fresh_gates,
        "nsa_spec": spec,
    }
    if adapter is not None:
        where, asked = adapter.base, adapter.asked_of_base(**asked)
        folder = planned_folder(where)
    shape = _shape_of(where, folder, **asked)
    if isinstance(method, str):
        method = parse_method(method, spec=shape.method.config_fields().get("nsa"))
    return shape if method is None else replace(shape, method=method.of_depth(shape.num_layers))


def _shape_of(
    where: str,
    folder: Path | None,
    *,
    attention: str | None,
    fresh_gates: bool,
    nsa_spec: NSASpec | None,
) -> ModelShape:
    """The shape of a whole checkpoint, from what `planned_folder` found."""
    if folder is None:
        shape = published_shape(where)
        assert shape is not None, "planned_folder leaves only published ids without a folder"
        if attention is None:
            return shape
        stated = shape.method.config_fields().get("nsa", NSASpec())
        method = named_method(attention, nsa_spec or stated)
        if method.uses_gates and not (shape.gates or fresh_gates):
            raise without_gates(where)
        return replace(shape, method=method, gates=method.uses_gates)
    names = stored_names(folder)
    if is_whole(folder) or (names and Path(where).is_dir()):
        config = read_checkpoint(
            folder, attention=attention, fresh_gates=fresh_gates, nsa_spec=nsa_spec
        ).config
    else:
        nsa = None if nsa_spec is None else spec_to_dict(nsa_spec)
        given = {"attention": attention, "nsa": nsa}
        config, _ = choose_config(folder, names, fresh_gates=fresh_gates, given=given)
    awq = stated_awq(read_fields(folder)[0])
    return replace(shape_of_config(config.to_dict()), is_awq=awq is not None)


def planned_folder(where: str, *, revision: str | None = None) -> Path | None:
    """The folder with a model's config and settings; None for a published id that is not cached.

    Raises:
        ModelError: an id that is neither cached, nor reachable, nor published.
        UsageError: a revision of a folder.

    """
    known = published_shape(where) is not None and not Path(where).is_dir()
    if known and revision is None and not is_cached(where, "config.json"):
        return None
    return model_folder(where, revision=revision, local_only=known and revision is None)


def adapter_of(
    where: str,
    folder: Path | None,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
) -> Adapter | None:
    """The adapter in what `planned_folder` found, if it is one.

    Raises:
        ModelError: an adapter that cannot be used.
        UsageError: a base without an adapter.

    """
    if folder is not None and is_adapter(folder):  # its gates are among its weights
        folder = model_folder(where, revision=revision, patterns=(*FILES, *WEIGHTS))
    return read_adapter(
        Path(where) if folder is None else folder,
        base=None if base is None else locate_model(base),
    )


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json states, in the flat (published) or the nested layout.

    Weights under Qwen2.5-VL's config are taken for dense ones: whether they have gates is not in
    their config.

    Raises:
        ModelError: as `checked_fields`.

    """
    fields = checked_fields(config, "config.json")
    text, vision = fields["text_config"], fields["vision_config"]
    spec = spec_from_dict(fields.get("nsa") or {})
    method = named_method(fields.get("attention", DENSE), spec)
    gates = fields.get("gates")
    return ModelShape(
        **{name: text[key] for key, name in _TEXT_KEYS.items()},
        tied_embeddings=fields["tie_word_embeddings"],
        vision=VisionShape(**{name: vision[key] for key, name in _VISION_KEYS.items()}),
        dtype=fields.get("dtype", "float32"),
        is_awq=stated_awq(config) is not None,
        gates=method.uses_gates if gates is None else gates,
        method=method,
    )
