"""The loader "videonsa" of vLLM: hands a file on, to be read with the model's sampling."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from videonsa.errors import UsageError

NAME = "videonsa"
UNSTATED_FRAMES = 32
"""What vLLM says of `num_frames` where nobody does."""
SAMPLING = ("fps", "num_frames", "max_frames", "max_pixels", "max_tokens", "start", "end")
"""What a request may say of a video, in `media_io_kwargs` or `mm_processor_kwargs`."""


def check_sampling(options: dict[str, Any]) -> dict[str, Any]:
    """The options as they are.

    Raises:
        UsageError: others than a request may state.
    """
    if unknown := sorted(set(options) - set(SAMPLING)):
        raise UsageError(f"{', '.join(unknown)} of a video: want some of {', '.join(SAMPLING)}")
    return options


@VIDEO_LOADER_REGISTRY.register(NAME)
class VideoNSALoader(VideoLoader):  # type: ignore[misc]  # vLLM is not typed
    """Decodes nothing: which frames to take hangs on the model, which the media processor knows."""

    @classmethod
    def load_bytes(cls, data: bytes, **options: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The bytes of a file, uint8 `[n]`, and how the request wants it sampled."""
        if options.get("num_frames") == UNSTATED_FRAMES:
            del options["num_frames"]
        return np.frombuffer(data, np.uint8), {"sampling": check_sampling(options)}
