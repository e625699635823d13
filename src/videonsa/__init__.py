"""VideoNSA: Native Sparse Attention for video-language models (arXiv 2510.02295).

    import videonsa

    model = videonsa.load("embedded")
    print(model.ask("clip.mp4", "What colour is the square?").text)

Public names are imported when first used, so `import videonsa` needs neither torch nor a GPU.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videonsa.errors import (
        BudgetError,
        ModelError,
        UsageError,
        VideoError,
        VideoNSAError,
    )
    from videonsa.inference.answer import Answer, AnswerStream
    from videonsa.inference.engine import VideoQA, load
    from videonsa.inference.session import Session
    from videonsa.ops.nsa import hybrid_attention, nsa_attention
    from videonsa.ops.spec import NSASpec
    from videonsa.planning.plan import VideoPlan, plan_video
    from videonsa.video.decode import VideoClip, read_video
    from videonsa.video.framelist import FrameList
    from videonsa.video.sampling import SamplingSpec

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AnswerStream",
    "BudgetError",
    "FrameList",
    "ModelError",
    "NSASpec",
    "SamplingSpec",
    "Session",
    "UsageError",
    "VideoClip",
    "VideoError",
    "VideoNSAError",
    "VideoPlan",
    "VideoQA",
    "__version__",
    "hybrid_attention",
    "load",
    "nsa_attention",
    "plan_video",
    "read_video",
]

_HOMES = MappingProxyType(
    {
        "Answer": "videonsa.inference.answer",
        "AnswerStream": "videonsa.inference.answer",
        "BudgetError": "videonsa.errors",
        "FrameList": "videonsa.video.framelist",
        "ModelError": "videonsa.errors",
        "NSASpec": "videonsa.ops.spec",
        "SamplingSpec": "videonsa.video.sampling",
        "Session": "videonsa.inference.session",
        "UsageError": "videonsa.errors",
        "VideoClip": "videonsa.video.decode",
        "VideoError": "videonsa.errors",
        "VideoNSAError": "videonsa.errors",
        "VideoPlan": "videonsa.planning.plan",
        "VideoQA": "videonsa.inference.engine",
        "hybrid_attention": "videonsa.ops.nsa",
        "load": "videonsa.inference.engine",
        "nsa_attention": "videonsa.ops.nsa",
        "plan_video": "videonsa.planning.plan",
        "read_video": "videonsa.video.decode",
    }
)


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` the first time the name is used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'videonsa' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
