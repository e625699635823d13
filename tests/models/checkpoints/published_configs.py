"""The config.json of the published models, and small ones of the same structure.

`flat` is how Qwen2.5-VL stands on the hub: text fields at the top. Fine-tuned checkpoints, the
released VideoNSA among them, were written by transformers 4.5x: a `text_config`, and the same
fields at the top again. Transformers 5 writes only the `text_config`, with `rope_parameters`.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

NESTED = re.compile(r"^model\.")
BESIDE = (
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
STYLES = ("flat", "transformers 4", "transformers 5")


class Size(NamedTuple):
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    max_window_layers: int
    tied: bool
    vision_mlp: int
    parameters: int
    """Weights and biases, a tied head counted once."""


SIZES = {
    "3B": Size(2048, 11008, 36, 16, 2, 151936, 70, True, 3420, 3_754_622_976),
    "7B": Size(3584, 18944, 28, 28, 4, 152064, 28, False, 3420, 8_292_166_656),
    "32B": Size(5120, 27648, 64, 40, 8, 152064, 64, False, 3456, 33_452_718_336),
    "72B": Size(8192, 29568, 80, 64, 8, 152064, 80, False, 3456, 73_410_777_344),
}
_TEXT_FIELDS = (
    *("attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size"),
    *("initializer_range", "intermediate_size", "max_position_embeddings", "max_window_layers"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"),
    *("rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "use_cache"),
    *("use_sliding_window", "vocab_size"),
)


def flat(name: str) -> dict[str, Any]:
    size = SIZES[name]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "initializer_range": 0.02,
        "intermediate_size": size.mlp,
        "max_position_embeddings": 128000,
        "max_window_layers": size.max_window_layers,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": size.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": size.vision_mlp,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": size.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": size.vocab,
    }


def styled(config: dict[str, Any], style: str) -> dict[str, Any]:
    """A flat config in another of the `STYLES`."""
    config = deepcopy(config)
    if style == "flat":
        return config
    text = {name: deepcopy(config[name]) for name in _TEXT_FIELDS}
    text["model_type"] = "qwen2_5_vl_text"
    sections = text["rope_scaling"]["mrope_section"]
    if style == "transformers 4":
        rope = {"mrope_section": sections, "rope_type": "default", "type": "default"}
        own = {"vision_token_id": 151654, "torch_dtype": "bfloat16"}
        text |= {"rope_scaling": rope, "sliding_window": None} | own
        config["vision_config"] |= {"in_channels": 3, "model_type": "qwen2_5_vl"}
        return config | {"text_config": text, "rope_scaling": rope, "sliding_window": None}
    del text["rope_scaling"], text["rope_theta"], text["tie_word_embeddings"]
    rope = {"mrope_section": sections, "rope_theta": 1000000.0, "rope_type": "default"}
    layer_types = ["full_attention"] * text["num_hidden_layers"]
    text |= {"rope_parameters": rope, "sliding_window": None, "layer_types": layer_types}
    text |= {"dtype": "bfloat16", "pad_token_id": None}
    config["vision_config"] |= {"in_channels": 3, "model_type": "qwen2_5_vl_vision"}
    tied = config["tie_word_embeddings"]
    dropped = {*_TEXT_FIELDS, "torch_dtype"}
    kept = {name: value for name, value in config.items() if name not in dropped}
    return kept | {"text_config": text, "dtype": "bfloat16", "tie_word_embeddings": tied}


def small(name: str) -> dict[str, Any]:
    """The flat config with the same heads and fields, but small: heads of 16, ids below 64."""
    config, size = flat(name), SIZES[name]
    config |= {
        "hidden_size": 16 * size.heads,
        "intermediate_size": 48,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": 64,
    }
    ids = ("vision_start", "vision_end", "vision", "image", "video")
    config |= {f"{name}_token_id": 50 + number for number, name in enumerate(ids)}
    config["vision_config"] |= {
        "depth": 2,
        "fullatt_block_indexes": [1],
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 16 * size.heads,
    }
    return config


def tensor_shapes(config: dict[str, Any], *, gates: bool = False) -> dict[str, list[int]]:
    """Names and shapes of the published files, from a flat config, written down independently."""
    shapes = dict(_tower_shapes(config["vision_config"]))
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv = config["num_key_value_heads"] * hidden // heads
    shapes["model.embed_tokens.weight"] = [config["vocab_size"], hidden]
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm.weight": [hidden],
            "self_attn.q_proj.weight": [hidden, hidden],
            "self_attn.q_proj.bias": [hidden],
            "self_attn.k_proj.weight": [kv, hidden],
            "self_attn.k_proj.bias": [kv],
            "self_attn.v_proj.weight": [kv, hidden],
            "self_attn.v_proj.bias": [kv],
            "self_attn.o_proj.weight": [hidden, hidden],
            "post_attention_layernorm.weight": [hidden],
            "mlp.gate_proj.weight": [mlp, hidden],
            "mlp.up_proj.weight": [mlp, hidden],
            "mlp.down_proj.weight": [hidden, mlp],
        }.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
        if gates:
            for name, outputs in {"g_proj_1": hidden, "g_proj_2": 3 * heads}.items():
                prefix = f"model.layers.{layer}.self_attn.{name}"
                shapes |= {f"{prefix}.weight": [outputs, hidden], f"{prefix}.bias": [outputs]}
    shapes["model.norm.weight"] = [hidden]
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [config["vocab_size"], hidden]
    return shapes


def _tower_shapes(vision: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    size, mlp, merged = (
        vision["hidden_size"],
        vision["intermediate_size"],
        4 * vision["hidden_size"],
    )
    yield "visual.patch_embed.proj.weight", [size, 3, 2, 14, 14]
    for block in range(vision["depth"]):
        for name, shape in {
            "norm1.weight": [size],
            "norm2.weight": [size],
            "attn.qkv.weight": [3 * size, size],
            "attn.qkv.bias": [3 * size],
            "attn.proj.weight": [size, size],
            "attn.proj.bias": [size],
            "mlp.gate_proj.weight": [mlp, size],
            "mlp.gate_proj.bias": [mlp],
            "mlp.up_proj.weight": [mlp, size],
            "mlp.up_proj.bias": [mlp],
            "mlp.down_proj.weight": [size, mlp],
            "mlp.down_proj.bias": [size],
        }.items():
            yield f"visual.blocks.{block}.{name}", shape
    yield "visual.merger.ln_q.weight", [size]
    yield "visual.merger.mlp.0.weight", [merged, merged]
    yield "visual.merger.mlp.0.bias", [merged]
    yield "visual.merger.mlp.2.weight", [vision["out_hidden_size"], merged]
    yield "visual.merger.mlp.2.bias", [vision["out_hidden_size"]]


def make_tensors(config: dict[str, Any], *, gates: bool = False) -> dict[str, torch.Tensor]:
    """Random bfloat16 weights under the published names."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (0.02 * torch.randn(shape, generator=generator)).to(torch.bfloat16)
        for name, shape in tensor_shapes(config, gates=gates).items()
    }


def parameter_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names they have in memory."""
    return {
        f"model.{name}"
        if name.startswith("visual.")
        else NESTED.sub("model.language_model.", name): tensor
        for name, tensor in tensors.items()
    }


def write_published(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    *,
    num_shards: int = 3,
) -> Path:
    """A checkpoint as on the hub: shards, an index, and some files of tokenizer and processor."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, weight_map = list(tensors), {}
    for number in range(num_shards):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        part = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(x.nbytes for x in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in BESIDE:
        (folder / name).write_text(f'{{"file": "{name}"}}')
    return folder
