"""The shape of a model, read from its config alone: parameters, context, frame factor.

Planning needs no weights. The shapes of the published models are built in, so that a plan for
them needs no network either.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from videonsa.errors import ModelError
from videonsa.inference.locate import locate_model, read_json
from videonsa.models.quantised import INT4_COLUMNS, INT4_GROUP, INT4_ROWS, Weights
from videonsa.ops.spec import NSASpec

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
    gates: bool = False
    attention: Literal["nsa", "dense"] = "dense"
    spec: NSASpec = field(default_factory=NSASpec)

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
        """Bytes of all weights, those of the decoder layers quantised as `weights` says."""
        full = self.num_parameters * self.value_bytes
        if self.weights == "full":
            return full
        saved = self.linear_weights * self.value_bytes - self._quantised_bytes()
        return full - self.num_layers * saved

    def _quantised_bytes(self) -> int:
        """Of one layer's projections and MLP: the weights, and their scales in float32."""
        size, kv, mlp = self.hidden_size, self.num_kv_heads * self.head_dim, self.intermediate_size
        linears = [(size, size)] * 2 + [(size, kv)] * 2 + [(size, mlp)] * 2 + [(mlp, size)]
        if self.weights == "int8":
            return sum(inner * outer + outer * 4 for inner, outer in linears)
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
            return ModelShape(**seven, gates=True, attention="nsa", spec=NSASpec.released())
    return None


def load_shape(model: str | Path) -> ModelShape:
    """The shape of a model by folder, hub id or 'embedded', from its config.json alone.

    Raises:
        ModelError: an unknown or unreachable model, or one that is no Qwen2.5-VL.

    """
    if not Path(model).is_dir() and (shape := published_shape(str(model))):
        return shape
    where = locate_model(model)
    config = read_json(where, "config.json")
    if config is None:
        raise ModelError(
            f"model {str(model)!r} has no config.json: name the folder that save_pretrained wrote"
        )
    return shape_of_config(config)


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json states, in the flat (published) or the nested layout.

    Raises:
        ModelError: a model of another family, or a key that is missing.

    """
    family = config.get("model_type")
    if family not in ("qwen2_5_vl", "videonsa"):
        raise ModelError(f"model_type={family!r}: want 'qwen2_5_vl' or 'videonsa'")
    text = config.get("text_config") or config
    vision = config.get("vision_config") or {}
    try:
        shape = ModelShape(
            **{name: text[key] for key, name in _TEXT_KEYS.items()},
            tied_embeddings=config.get("tie_word_embeddings", False),
            vision=VisionShape(
                **{name: vision[key] for key, name in _VISION_KEYS.items() if key in vision}
            ),
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"config.json lacks {error}: want a Qwen2.5-VL config") from error
    dtype = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32")
    shape = replace(shape, dtype=dtype.removeprefix("torch."))
    if family == "qwen2_5_vl":
        return shape
    known = {item.name for item in fields(NSASpec)}
    options = {key: value for key, value in (config.get("nsa") or {}).items() if key in known}
    if "branches" in options:
        options["branches"] = tuple(options["branches"])
    try:
        spec = NSASpec(**options)
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json states no usable NSA: {error}") from error
    return replace(shape, gates=True, attention=config.get("attention", "nsa"), spec=spec)
