"""Videos as rows of a language model: ids, embeddings in the two regimes, and dense attention."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from videonsa.bench.attention_inputs import Regime
from videonsa.bench.random_model import IDS
from videonsa.models.methods import AttentionMethod, Dense
from videonsa.models.methods.protocol import BEHIND

TEXT_ROWS = (14, 50)
"""Before the video and behind it: the chat format, a question."""
NOISE = 0.1
PATCH_SIZE = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Arguments of forward for one video of `grid` patches, without pixels."""

    grid: tuple[int, int, int]
    tokens_per_frame: int
    inputs: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Of the video."""
        return self.grid[0] * self.tokens_per_frame

    @property
    def num_rows(self) -> int:
        """Of the language model: video and text."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.grid[1] * PATCH_SIZE, self.grid[2] * PATCH_SIZE

    @property
    def size(self) -> str:
        """The frame as HEIGHTxWIDTH."""
        return "x".join(map(str, self.frame))


def clip_of_tokens(tokens: int, frame: tuple[int, int], device: torch.device) -> Clip:
    """A video of at least so many tokens, between a few text tokens."""
    rows, columns = (side // PATCH_SIZE for side in frame)
    return clip_of_grid((-(-tokens // (rows * columns // 4)), rows, columns), device)


def clip_of_grid(grid: tuple[int, int, int], device: torch.device) -> Clip:
    """A video of (t, h, w) patches, between a few text tokens."""
    per_frame = grid[1] * grid[2] // 4
    before, behind = TEXT_ROWS
    text = torch.full((before + behind,), 20, device=device)
    video = torch.full((grid[0] * per_frame,), IDS["video_token_id"], device=device)
    text[before - 1] = IDS["vision_start_token_id"]
    return Clip(
        grid=grid,
        tokens_per_frame=per_frame,
        inputs={
            "input_ids": torch.cat([text[:before], video, text[before:]])[None],
            "video_grid_thw": torch.tensor([grid], device=device),
            "second_per_grid_ts": [1.0],
        },
    )


def clip_embeddings(clip: Clip, width: int, regime: Regime, *, like: Tensor) -> Tensor:
    """Rows `[1, T, width]` in place of the embedded prompt."""
    generator = torch.Generator(like.device).manual_seed(0)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=generator, device=like.device, dtype=like.dtype)

    rows = normal(clip.inputs["input_ids"].shape[1])
    if regime == "coherent":
        start, frames = TEXT_ROWS[0], clip.grid[0]
        video = rows[start : start + frames * clip.tokens_per_frame]
        common = normal(frames).repeat_interleave(clip.tokens_per_frame, dim=0)
        video.mul_(NOISE).add_(common)
    return rows[None]


def clip_pixels(clip: Clip, device: torch.device) -> Tensor:
    """Random patches `[P, values]` of a clip, for a tower."""
    t, h, w = clip.grid
    return torch.randn(t * h * w, 2 * 3 * PATCH_SIZE**2, device=device)


@contextmanager
def dense_backend(method: AttentionMethod, device: torch.device) -> Iterator[None]:
    """Dense attention is compared with at its best: cuDNN on a GPU.

    That of a method by which tokens leave, and what is left attends densely, too.
    Rows that are the last of more keys go to FlashAttention: without a mask cuDNN has no such rows.
    """
    with ExitStack() as stack:
        attends = getattr(method, BEHIND, method)
        if isinstance(attends, Dense) and device.type == "cuda":
            stack.enter_context(
                sdpa_kernel(
                    [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
                    set_priority=True,
                )
            )
        yield
