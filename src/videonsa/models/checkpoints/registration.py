"""Makes transformers' Auto classes and checkpoint renaming know the model."""

from videonsa.models._hf import (
    AutoConfig,
    AutoModelForImageTextToText,
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration


def register() -> None:
    """Register the config, the model and Qwen2.5-VL's on-disk names; harmless when repeated.

    Transformers renames the weights of older checkpoints by class name and would fill a class it
    does not know with random weights.
    """
    AutoConfig.register(VideoNSAConfig.model_type, VideoNSAConfig, exist_ok=True)
    AutoModelForImageTextToText.register(
        VideoNSAConfig, VideoNSAForConditionalGeneration, exist_ok=True
    )
    renaming = get_checkpoint_conversion_mapping("Qwen2_5_VLForConditionalGeneration")
    register_checkpoint_conversion_mapping(
        VideoNSAForConditionalGeneration.__name__, renaming, overwrite=True
    )
