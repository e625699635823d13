"""What does a prompt cost: attention budget, memory, and whether it fits the context."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from videonsa.errors import BudgetError
from videonsa.inference.shapes import BYTES_PER_VALUE, ModelShape
from videonsa.ops.reference import SCORES_PER_CHUNK
from videonsa.ops.spec import BRANCHES, NSASpec
from videonsa.video.sampling import SamplingPlan

_FLOAT32 = 4
_COPIES_PER_CHUNK = 5  # scores, probabilities and masks of a chunk, as ops/reference.py states


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionBudget:
    """How much a vision row attends to, as the paper counts it (section 3)."""

    keys: int
    """K = n * s + w; compressed keys are not counted."""
    gamma: float
    """2K / (L - 1) for a prompt of L tokens: the share of dense causal attention."""

    @property
    def dense_equivalent(self) -> bool:
        """Whether the selected blocks and the window cover as much as dense attention would."""
        return self.gamma >= 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes, estimated from shapes; allocators and kernels add to it."""

    weights: int
    cache: int
    """Keys and values of the prompt and the answer."""
    activations: int
    """Peak beside the two: the larger of the vision tower and one decoder layer."""

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.cache + self.activations


def attention_budget(
    spec: NSASpec, *, prompt_tokens: int, tokens_per_frame: int
) -> AttentionBudget:
    """K and gamma of a prompt of `prompt_tokens` tokens (paper section 3)."""
    keys = spec.attention_keys(tokens_per_frame)
    return AttentionBudget(keys=keys, gamma=2 * keys / max(prompt_tokens - 1, 1))


def budget_to_dict(budget: AttentionBudget | None) -> dict[str, Any] | None:
    """The budget as JSON keeps it."""
    if budget is None:
        return None
    return asdict(budget) | {"dense_equivalent": budget.dense_equivalent}


def check_context(
    frames: SamplingPlan, *, text_tokens: int, max_new_tokens: int, context: int
) -> None:
    """Refuse a prompt that leaves no room for the answer.

    Raises:
        BudgetError: says what would fit.

    """
    prompt = frames.num_tokens + text_tokens
    if prompt + max_new_tokens <= context:
        return
    came = (
        f"{frames.num_tokens} video + {text_tokens} text tokens and an answer of {max_new_tokens}"
    )
    room = context - text_tokens - max_new_tokens
    patches = room // frames.tokens_per_frame
    if patches < 1:
        advice = "shorten the question or lower --max-new-tokens"
    else:
        fitting = patches * frames.temporal_patch_size
        fps = math.floor(frames.sampled_fps * fitting / frames.num_frames * 1000) / 1000
        rate = f" or --fps to {fps:g}" if fps > 0 else ""
        advice = f"lower --max-frames to {fitting}{rate}, or pass --max-tokens {room}"
    raise BudgetError(f"{came} exceed the context of {context} tokens: {advice}")


def estimate_memory(
    shape: ModelShape,
    frames: SamplingPlan,
    *,
    attention: Literal["nsa", "dense"],
    prompt_tokens: int,
    max_new_tokens: int,
) -> MemoryEstimate:
    """Bytes of weights, cache and activations.

    Weights and cache are exact. Activations are the larger of two peaks: the vision tower's (the
    patches in float32, and per patch six rows of hidden size and three of the MLP) and one decoder
    layer's (per token six rows of hidden size and three of the MLP, and in float32 the output of
    each attention branch and their sum; with NSA a chunk of scores beside it).
    """
    value = BYTES_PER_VALUE[shape.dtype]
    patches = frames.grid[0] * frames.grid[1] * frames.grid[2]
    vision = shape.vision
    tower = patches * (
        vision.patch_values * (_FLOAT32 + value)
        + (6 * vision.hidden_size + 3 * vision.intermediate_size) * value
    )
    layer = prompt_tokens * (
        (6 * shape.hidden_size + 3 * shape.intermediate_size) * value
        + (len(BRANCHES) + 1) * shape.hidden_size * _FLOAT32
    )
    if attention == "nsa":
        scores = min(SCORES_PER_CHUNK, shape.num_heads * frames.num_tokens**2)
        layer += _COPIES_PER_CHUNK * scores * _FLOAT32
    return MemoryEstimate(
        weights=shape.num_parameters * value,
        cache=(prompt_tokens + max_new_tokens) * shape.cache_bytes_per_token,
        activations=max(tower, layer) + shape.vocab_size * _FLOAT32,
    )
