"""What a question about a video would cost: frames, tokens and memory, before loading weights."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from videonsa.errors import UsageError
from videonsa.inference.budget import (
    AttentionBudget,
    MemoryEstimate,
    attention_budget,
    budget_to_dict,
    estimate_memory,
)
from videonsa.inference.defaults import default_sampling
from videonsa.inference.locate import EMBEDDED
from videonsa.inference.shapes import BYTES_PER_VALUE, load_shape
from videonsa.ops.spec import NSASpec
from videonsa.video.decode import probe
from videonsa.video.sampling import SamplingPlan, SamplingSpec, VideoInfo, plan_sampling

TEXT_TOKENS = 64
"""Tokens of chat format and a short question, where the question is not known."""
NEW_TOKENS = 64
"""Default length of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoPlan:
    """Frames, tokens and memory of one question about one video."""

    model: str
    attention: Literal["nsa", "dense"]
    dtype: str
    info: VideoInfo
    sampling: SamplingPlan
    prompt_tokens: int
    """Video and text."""
    max_new_tokens: int
    context: int
    """Tokens the model takes, prompt and answer together."""
    parameters: int
    memory: MemoryEstimate
    spec: NSASpec | None
    """None with dense attention."""
    budget: AttentionBudget | None
    """None with dense attention."""

    @property
    def fits(self) -> bool:
        """Whether prompt and answer fit the context."""
        return self.prompt_tokens + self.max_new_tokens <= self.context

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON keeps it."""
        return {
            "model": self.model,
            "attention": self.attention,
            "dtype": self.dtype,
            "video": asdict(self.info),
            "frames": {
                "count": self.sampling.num_frames,
                "height": self.sampling.height,
                "width": self.sampling.width,
                "fps": self.sampling.sampled_fps,
                "times": list(self.sampling.times),
            },
            "grid": list(self.sampling.grid),
            "tokens": {
                "video": self.sampling.num_tokens,
                "prompt": self.prompt_tokens,
                "max_new": self.max_new_tokens,
                "context": self.context,
                "fits": self.fits,
            },
            "parameters": self.parameters,
            "memory_bytes_estimated": asdict(self.memory) | {"total": self.memory.total},
            "spec": asdict(self.spec) if self.spec else None,
            "budget": budget_to_dict(self.budget),
        }


def plan_video(
    video: str | Path,
    model: str | Path = EMBEDDED,
    *,
    sampling: SamplingSpec | None = None,
    attention: Literal["nsa", "dense"] | None = None,
    dtype: str | None = None,
    text_tokens: int = TEXT_TOKENS,
    max_new_tokens: int = NEW_TOKENS,
) -> VideoPlan:
    """Plan a question about a video from its header and the model's config; no weights are read.

    Args:
        video: a video file, a folder of images or an image.
        model: folder, hub id or 'embedded'.
        sampling: which frames; None is the model's default.
        attention: None is what the model's config says.
        dtype: of weights and cache, for example "bfloat16"; None is the config's.
        text_tokens: tokens of the prompt beside the video's.
        max_new_tokens: longest answer.

    Raises:
        VideoError: a video that cannot be read.
        ModelError: an unknown model.
        UsageError: an argument outside its domain.
        BudgetError: `max_tokens` below one temporal patch.

    """
    shape = load_shape(model)
    if dtype is not None:
        if dtype not in BYTES_PER_VALUE:
            raise UsageError(f"dtype={dtype!r}: want one of {', '.join(BYTES_PER_VALUE)}")
        shape = replace(shape, dtype=dtype)
    info = probe(video)
    frames = plan_sampling(info, sampling or default_sampling(model, shape))
    used = attention or shape.attention
    prompt_tokens = frames.num_tokens + text_tokens
    budget = attention_budget(
        shape.spec, prompt_tokens=prompt_tokens, tokens_per_frame=frames.tokens_per_frame
    )
    return VideoPlan(
        model=str(model),
        attention=used,
        dtype=shape.dtype,
        info=info,
        sampling=frames,
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        context=shape.context,
        parameters=shape.num_parameters,
        memory=estimate_memory(
            shape,
            frames,
            attention=used,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
        ),
        spec=shape.spec if used == "nsa" else None,
        budget=budget if used == "nsa" else None,
    )
