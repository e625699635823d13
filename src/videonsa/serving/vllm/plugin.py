"""What vLLM calls in each of its processes before it looks for models."""


def register() -> None:
    """Make the model and the video loader known to vLLM, and the config to transformers."""
    from vllm import ModelRegistry

    from videonsa.models.checkpoints.registration import register as register_config
    from videonsa.serving.vllm import loader  # noqa: F401  # registers itself

    register_config()
    ModelRegistry.register_model(
        "VideoNSAForConditionalGeneration",
        "videonsa.serving.vllm.model:VideoNSAForConditionalGeneration",
    )
