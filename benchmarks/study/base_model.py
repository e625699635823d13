"""The models that the study begins with: shapes, and a folder of fresh weights of one."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from videonsa.disk import place_folder
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.locate import EMBEDDED, locate_model

INTERLEAVED = (1,) * 32
"""Rotated pairs of a head of 64: time, rows and columns take one in turn. In three runs, as in
Qwen2.5-VL, rows and columns have the slow pairs: over the 4 x 4 tokens of a frame they turn by
0.03 at most, and a small model cannot tell where things stand (`position_probe.py`)."""
CONTEXT = 2**18
"""Tokens, and position ids, that a model of the study may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What differs between the models that the study can be done with; the rest is embedded's."""

    layers: int
    hidden: int
    heads: int
    mlp: int
    kv_heads: int = 2
    tower_layers: int = 6
    tower_hidden: int = 256
    tower_heads: int = 4
    tower_mlp: int = 688
    rope_theta: float = 10_000.0
    """The slowest pair of a head turns by about 1 over this a position id."""

    def config(self) -> VideoNSAConfig:
        """The model's config: the embedded one's tokens, frames and patches, without gates."""
        fields = json.loads(Path(locate_model(EMBEDDED), "config.json").read_text("utf-8"))
        text: dict[str, Any] = fields["text_config"]
        pairs = self.hidden // self.heads // 2
        text |= {
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "layer_types": ["full_attention"] * self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": CONTEXT,
        }
        text["rope_parameters"] |= {
            "rope_theta": self.rope_theta,
            "mrope_section": list(INTERLEAVED[:pairs]),
        }
        fields["vision_config"] |= {
            "depth": self.tower_layers,
            "hidden_size": self.tower_hidden,
            "intermediate_size": self.tower_mlp,
            "num_heads": self.tower_heads,
            "out_hidden_size": self.hidden,
            "fullatt_block_indexes": [self.tower_layers - 1],
        }
        config: VideoNSAConfig = VideoNSAConfig.from_dict(fields | {"attention": "dense"})
        return config


SIZES = MappingProxyType(
    {
        "45m": ModelSize(layers=12, hidden=512, heads=8, mlp=1664),
        "20m": ModelSize(layers=10, hidden=384, heads=6, mlp=1152, tower_hidden=192, tower_mlp=512),
        "3m": ModelSize(
            layers=5,
            hidden=192,
            heads=6,
            mlp=512,
            tower_layers=3,
            tower_hidden=96,
            tower_mlp=256,
            rope_theta=1000.0,
        ),
        "tiny": ModelSize(
            layers=2,
            hidden=64,
            heads=4,
            mlp=96,
            tower_layers=1,
            tower_hidden=32,
            tower_heads=2,
            tower_mlp=48,
        ),
    }
)
"""By their parameters; `3m` has the shape of the embedded model, `tiny` tries the study out."""

_SHAPE = MappingProxyType(
    {
        "text_config": (
            "num_hidden_layers",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "rope_parameters",
        ),
        "vision_config": ("depth", "hidden_size", "intermediate_size", "num_heads"),
    }
)
"""Fields of a config that tell sizes apart."""


def write_base(size: ModelSize, folder: Path) -> None:
    """Write a model of a size that has learnt nothing.

    Training draws weights of its own for each seed (`model.fresh`): only the shape is used.

    Raises:
        OSError: the folder cannot be written.
    """
    torch.manual_seed(0)
    model = VideoNSAForConditionalGeneration(size.config()).to(torch.bfloat16)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for path in Path(locate_model(EMBEDDED)).iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, partial)
    place_folder(partial, folder)


def is_base_of(size: ModelSize, folder: Path) -> bool:
    """Whether a model that `write_base` wrote has a size."""
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    wanted = size.config().to_dict()
    return all(
        stored[part][name] == wanted[part][name] for part, names in _SHAPE.items() for name in names
    )
