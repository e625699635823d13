"""Everything taken from transformers that could move between versions, imported in one place."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError


@contextmanager
def _errors_only(*names: str) -> Iterator[None]:
    """Keep the warnings of some loggers off stderr for a while."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


# transformers imports torchao where it is installed, whose warnings are about kernels and enums
# that nothing here uses.
with _errors_only("torchao", "torch.utils._pytree"):
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        DynamicCache,
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )
    from transformers import initialization as guarded_init
    from transformers.cache_utils import Cache, DynamicLayer, StaticCache
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionPatchEmbed,
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLAttention,
        Qwen2_5_VLMLP,
        Qwen2_5_VLRMSNorm,
        Qwen2_5_VLVisionAttention,
        Qwen2MLP,
        apply_rotary_pos_emb_vision,
    )
    from transformers.utils import logging as hf_logging

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
    "Qwen2_5_VisionTransformerPretrainedModel",
    "StaticCache",
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
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if not show_progress:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
