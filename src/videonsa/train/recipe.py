"""The recipe of the embedded model: its shape, its data and its schedule, in one frozen object."""

from dataclasses import dataclass
from typing import Any

from videonsa.models.config import VideoNSAConfig
from videonsa.ops.spec import NSASpec

MAX_BATCH_SIZE = 4096
"""Clips of a step; keeps the scenes of one step apart from those of the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of training on clips of one length (a temporal patch is 2 frames, 1 s at 2 fps)."""

    temporal_patches: int
    batch_size: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedRecipe:
    """Defaults are the curriculum of the model in the package, as one run (docs/embedded.md)."""

    hidden_size: int = 192
    num_layers: int = 5
    num_query_heads: int = 6
    num_kv_heads: int = 2
    intermediate_size: int = 512
    vision_hidden_size: int = 96
    vision_depth: int = 3
    num_selected_blocks: int = 2
    window_size: int = 16
    max_position_embeddings: int = 32768

    stages: tuple[Stage, ...] = (
        Stage(temporal_patches=1, batch_size=256, steps=1500),
        Stage(temporal_patches=8, batch_size=128, steps=1500),
        Stage(temporal_patches=24, batch_size=64, steps=1400),
    )
    learning_rate: float = 1e-3
    warmup_steps: int = 60
    weight_decay: float = 0.05
    num_compressed_layers: int = 1
    num_window_layers: int = 0
    """Layers above these start with the gate of the branch closed, so that their rows must look
    through the selected branch; the gates stay free to open."""
    branch_dropout: float = 0.0
    """Chance, a step, that the compressed branch is left out, and that the window is."""
    freeze_vision: bool = False
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def spec(self) -> NSASpec:
        """The attention of the embedded model: a frame is a block."""
        return NSASpec.paper(
            block_size="frame",
            num_selected_blocks=self.num_selected_blocks,
            window_size=self.window_size,
        )

    def config(self, *, vocab_size: int, token_ids: dict[str, int]) -> VideoNSAConfig:
        """Build the model's config; `token_ids`: special tokens by their config names."""
        head_dim = self.hidden_size // self.num_query_heads
        spatial = head_dim // 8
        text: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_query_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": token_ids["eos_token_id"],
            "pad_token_id": token_ids["pad_token_id"],
            # Half of the rotary pairs for time: clips are long and frames are 4 x 4 tokens.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "mrope_section": [head_dim // 2 - 2 * spatial, spatial, spatial],
            },
        }
        vision: dict[str, Any] = {
            "depth": self.vision_depth,
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": self.hidden_size,
            "fullatt_block_indexes": [self.vision_depth - 1],
        }
        return VideoNSAConfig(
            text_config=text,
            vision_config=vision,
            nsa=self.spec(),
            attention="nsa",
            tie_word_embeddings=True,
            **token_ids,
        )
