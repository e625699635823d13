"""Models of a published shape with random weights, made where they run."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import torch

from videonsa.models._hf import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.shape import ModelShape, VisionShape, published_shape

IDS = MappingProxyType({"vision_start_token_id": 12, "image_token_id": 10, "video_token_id": 11})
"""Small, so that any vocabulary has them."""
WORDS = 1024
"""Of a model whose words do not matter."""
WEIGHT_STD = 0.02
INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")
"""Of the language model: what a layer adds to the residual stream comes from these."""
TINY = ModelShape(
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=128,
    tied_embeddings=False,
    vision=VisionShape(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64
    ),
)
MODELS = MappingProxyType(
    {
        "tiny": TINY,
        **{
            size: shape
            for size in ("3B", "7B", "32B", "72B")
            if (shape := published_shape(f"Qwen/Qwen2.5-VL-{size}-Instruct"))
        },
    }
)


def config_fields(shape: ModelShape, ids: Mapping[str, int] = IDS) -> dict[str, Any]:
    """A Qwen2.5-VL config of a shape, with the `ids` of tokens that stand for vision."""
    vision = asdict(shape.vision)
    vision["spatial_merge_size"] = vision.pop("merge_size")
    depth = shape.vision.depth
    quarter = shape.head_dim // 8  # of the rotated pairs: time takes two, rows and columns three
    return {
        "text_config": {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.context,
            "tie_word_embeddings": shape.tied_embeddings,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [quarter, 3 * quarter // 2, 3 * quarter // 2],
            },
        },
        "vision_config": {
            **vision,
            "fullatt_block_indexes": list(range(max(depth // 4, 1) - 1, depth, max(depth // 4, 1))),
            "window_size": 112,
            "tokens_per_second": 2,
        },
        **ids,
    }


def random_model(
    shape: ModelShape,
    *,
    device: torch.device,
    dtype: torch.dtype,
    ids: Mapping[str, int] = IDS,
) -> VideoNSAForConditionalGeneration:
    """Our model with gates; normal weights, norms of one, gates near one half.

    What every layer adds is scaled down by the root of their number, twice the layers. Without it
    the first layer's output swamps its input, and rows that were alike are so no more.
    """
    config = VideoNSAConfig(**config_fields(shape, ids))
    model: VideoNSAForConditionalGeneration = _filled(
        VideoNSAForConditionalGeneration, config, device, dtype
    )
    return model


def one_layer_model(shape: ModelShape, *, device: torch.device) -> VideoNSAForConditionalGeneration:
    """A model with one layer, one block of the vision tower and few words, else of a shape.

    It attends by the method of the shape, in its dtype, with gates whether or not they are used.
    """
    small = replace(shape, num_layers=1, vocab_size=WORDS, vision=replace(shape.vision, depth=1))
    model = random_model(small, device=device, dtype=getattr(torch, shape.dtype))
    model.method = shape.method
    return model


def random_qwen(shape: ModelShape, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Transformers' own model, with PyTorch's fused attention."""
    config = Qwen2_5_VLConfig(**config_fields(shape))
    config._attn_implementation = "sdpa"
    return _filled(Qwen2_5_VLForConditionalGeneration, config, device, dtype)


def _filled(kind: Any, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """No number of a checkpoint decides its time, so the quickest filling will do."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind(config)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(0)
    added = (2 * config.text_config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim > 1:
                scale = added if name.endswith(INTO_RESIDUAL) else 1.0
                x.normal_(std=scale * WEIGHT_STD, generator=generator)
            else:
                x.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()
