"""What vLLM calls in each of its processes before it looks for models."""


def register() -> None:
    """Make the model known to vLLM, by name, and its config to transformers."""
    from vllm import ModelRegistry

    from videonsa.models.checkpoints.registration import register as register_config

    register_config()
    ModelRegistry.register_model(
        "VideoNSAForConditionalGeneration",
        "videonsa.serving.vllm.model:VideoNSAForConditionalGeneration",
    )
