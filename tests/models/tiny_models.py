"""Tiny random models and prompts for the tests of this folder."""

from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.ops.spec import NSASpec

IMAGE, VIDEO, START, END, EOS, PAD = 10, 11, 12, 13, 1, 0
VOCABULARY = 128
SPEC = NSASpec(block_size="frame", num_selected_blocks=3, window_size=6)


def config_fields(**text: Any) -> dict[str, Any]:
    """G = 2, head dim 16, two layers; windows of 2 x 2 merged tokens in the tower."""
    return {
        "text_config": {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "vocab_size": VOCABULARY,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 3, 3],
            },
            **text,
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": text.get("hidden_size", 64),
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "tokens_per_second": 2,
        },
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


def qwen(seed: int = 1, **fields: Any) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config_fields() | fields)).eval()


def tiny(
    seed: int = 1, *, spec: NSASpec = SPEC, attention: str = "nsa", **fields: Any
) -> VideoNSAForConditionalGeneration:
    """A model whose gates differ from 0.5, head by head, unless attention is dense."""
    torch.manual_seed(seed)
    config = VideoNSAConfig(nsa=spec, attention=attention, **config_fields() | fields)
    model = VideoNSAForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "g_proj_2" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def video(num_patches: int, height: int = 4, width: int = 4, *, seed: int = 0) -> dict[str, Any]:
    """One random video as arguments of forward; a temporal patch each second."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num_patches * height * width, 1176, generator=generator)
    return {
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[num_patches, height, width]]),
        "video_times": [tuple(float(i) for i in range(num_patches))],
    }


def prompt(num_patches: int, height: int = 4, width: int = 4, *, seed: int = 0) -> dict[str, Any]:
    """Text, a video, a question: arguments of forward for one sample."""
    tokens = num_patches * height * width // 4
    ids = [20, START, *[VIDEO] * tokens, END, 30 + seed, 31, 32]
    return {"input_ids": torch.tensor([ids]), **video(num_patches, height, width, seed=seed)}


def left_padded(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The samples as one batch."""
    length = max(sample["input_ids"].shape[1] for sample in samples)
    ids = torch.full((len(samples), length), PAD)
    mask = torch.zeros_like(ids)
    for i, sample in enumerate(samples):
        own = sample["input_ids"].shape[1]
        ids[i, length - own :] = sample["input_ids"][0]
        mask[i, length - own :] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values_videos": torch.cat([one["pixel_values_videos"] for one in samples]),
        "video_grid_thw": torch.cat([one["video_grid_thw"] for one in samples]),
        "video_times": [times for one in samples for times in one["video_times"]],
    }
