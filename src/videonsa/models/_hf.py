"""Everything taken from transformers that could move between versions, imported in one place."""

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import initialization as guarded_init
from transformers.cache_utils import Cache
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLAttention,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

__all__ = [
    "AutoConfig",
    "AutoModelForImageTextToText",
    "Cache",
    "CausalLMOutputWithPast",
    "DynamicCache",
    "Qwen2_5_VLAttention",
    "Qwen2_5_VLConfig",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLVisionAttention",
    "apply_rotary_pos_emb_vision",
    "get_checkpoint_conversion_mapping",
    "guarded_init",
    "register_checkpoint_conversion_mapping",
]
