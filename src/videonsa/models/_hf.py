"""Everything taken from transformers that could move between versions, imported in one place."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import initialization as guarded_init
from transformers.cache_utils import Cache, DynamicLayer
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLAttention,
    Qwen2_5_VLMLP,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLVisionAttention,
    Qwen2MLP,
    apply_rotary_pos_emb_vision,
)
from transformers.utils import logging

__all__ = [
    "AutoConfig",
    "AutoModelForImageTextToText",
    "Cache",
    "CausalLMOutputWithPast",
    "DynamicCache",
    "DynamicLayer",
    "GenerationConfig",
    "Qwen2MLP",
    "Qwen2_5_VLAttention",
    "Qwen2_5_VLConfig",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLMLP",
    "Qwen2_5_VLRMSNorm",
    "Qwen2_5_VLVisionAttention",
    "Qwen2_5_VisionPatchEmbed",
    "StrictDataclassError",
    "apply_rotary_pos_emb_vision",
    "get_checkpoint_conversion_mapping",
    "guarded_init",
    "quiet_loading",
    "register_checkpoint_conversion_mapping",
    "snapshot_download",
]


@contextmanager
def quiet_loading(*, show_progress: bool) -> Iterator[None]:
    """Keep transformers' load report, and its progress bar if so wished, off stderr for a while."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not show_progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
