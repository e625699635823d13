"""`NSASpec`: every choice that changes what the attention computes, in one frozen object."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import torch

from videonsa.errors import UsageError
from videonsa.ops.arguments import shown

BRANCHES = ("compressed", "selected", "window")
MAX_BLOCK_SIZE = 128
"""Tokens; a longer frame is cut into parts of at most this size."""

_MOST_SIZE = 2**30
"""Tokens or blocks: positions are counted in 32 bits."""
_RANGES = {
    "num_selected_blocks": (1, 2**16),
    "window_size": (1, _MOST_SIZE),
    "num_init_blocks": (0, _MOST_SIZE),
    "num_local_blocks": (0, _MOST_SIZE),
}
_CHOICES = {
    "selection": ("scores", "random"),
    "selection_scope": ("token", "block"),
    "compressed_mask": ("past_complete", "current_and_later", "past_and_current"),
    "head_map": ("group", "padded"),
    "importance": ("probability", "misread_lse"),
    "force_current_block": (True, False),
    "tie_order": ("index", "bitonic"),
    "stream": ("vision", "sequence"),
    "pool_partial_block": (True, False),
    "vision_mask": ("token_ids", "position_ids"),
    "temporal_ids": ("exact", "truncated", "fixed"),
}
_BUNDLE = {
    "head_map": ("group", "padded"),
    "importance": ("probability", "misread_lse"),
    "force_current_block": (True, False),
    "tie_order": ("index", "bitonic"),
    "stream": ("vision", "sequence"),
    "pool_partial_block": (False, True),
}
"""Field: its value in the paper, its value in the published code."""


class NSAResult(NamedTuple):
    """Output of NSA with its branches. LSE is natural-log, float32, -inf for a row without keys."""

    output: torch.Tensor  # [B, T, HQ, D]
    o_cmp: torch.Tensor  # [B, T, HQ, D]
    o_slc: torch.Tensor  # [B, T, HQ, D]
    o_win: torch.Tensor  # [B, T, HQ, D]
    lse_cmp: torch.Tensor  # [B, T, HQ]
    lse_slc: torch.Tensor  # [B, T, HQ]
    lse_win: torch.Tensor  # [B, T, HQ]
    selected_blocks: torch.Tensor  # [B, T, H, n] int32, ascending, -1 padded


@dataclass(frozen=True, kw_only=True, slots=True)
class NSASpec:
    """What Native Sparse Attention computes (paper sections 2.1 to 2.3).

    `NSASpec()` is the paper. `NSASpec.released()` is what the published code computes; the fields
    from `compressed_mask` on tell the two apart. Only these two combinations are implemented:
    another is a ValueError. `compressed_mask` is free in the second; `vision_mask` and
    `temporal_ids` say how the inputs are made and are free in both.
    """

    block_size: int | Literal["frame"] = 64
    """Tokens per block, or "frame": every frame is a block."""
    num_selected_blocks: int = 32
    """Selected blocks per row and KV head, the current block counted."""
    window_size: int = 256
    """Tokens in the window, the row's own counted."""
    num_init_blocks: int = 0
    """First blocks of the stream that are always selected."""
    num_local_blocks: int = 0
    """Blocks just before the current one that are always selected."""
    selection: Literal["scores", "random"] = "scores"
    """ "random": a fixed draw for each row, KV head and layer, as a control
    (`ops.random_blocks`)."""
    selection_scope: Literal["token", "block"] = "token"
    """ "block": all rows of a block share one selection. Not causal inside a block."""
    branches: tuple[str, ...] = BRANCHES
    """Branches that contribute; the gate of any other counts as zero."""
    gate_temperature: float = 0.3

    compressed_mask: Literal["past_complete", "current_and_later", "past_and_current"] = (
        "past_complete"
    )
    head_map: Literal["group", "padded"] = "group"
    """ "group": KV head h // G. "padded": 28 heads laid out twice in 64."""
    importance: Literal["probability", "misread_lse"] = "probability"
    force_current_block: bool = True
    tie_order: Literal["index", "bitonic"] = "index"
    stream: Literal["vision", "sequence"] = "vision"
    """Whether text keys take part in NSA (as zeros)."""
    pool_partial_block: bool = False
    vision_mask: Literal["token_ids", "position_ids"] = "token_ids"
    temporal_ids: Literal["exact", "truncated", "fixed"] = "exact"

    def __post_init__(self) -> None:
        """Refuse values outside the domain, each with what came and what was wanted."""
        if not isinstance(self.branches, list | tuple):
            raise UsageError(f"branches={shown(self.branches)}: want a list or tuple of {BRANCHES}")
        object.__setattr__(self, "branches", tuple(self.branches))
        self._check_choices()
        self._check_sizes()
        self._check_combination()

    def _check_sizes(self) -> None:
        size = self.block_size
        is_size = type(size) is int and 1 <= size <= _MOST_SIZE
        if not is_size and not (isinstance(size, str) and size == "frame"):
            raise UsageError(
                f"block_size={shown(size)}: want an int from 1 to {_MOST_SIZE} or 'frame'"
            )
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name}={shown(value)}: want an int from {least} to {most}")
        forced = self.num_init_blocks + self.num_local_blocks + 1
        if self.force_current_block and forced > self.num_selected_blocks:
            raise UsageError(
                f"num_init_blocks + num_local_blocks + 1 = {forced} forced blocks exceed "
                f"num_selected_blocks={self.num_selected_blocks}: raise it or force fewer"
            )
        temperature = self.gate_temperature
        if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
            raise UsageError(f"gate_temperature={shown(temperature)}: want a finite number above 0")

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if type(value) is not type(choices[0]) or value not in choices:
                wanted = ", ".join(map(repr, choices))
                raise UsageError(f"{name}={shown(value)}: want one of {wanted}")
        if any(self.branches.count(x) > 1 or x not in BRANCHES for x in self.branches):
            raise UsageError(f"branches={self.branches}: want a subset of {BRANCHES}, each once")

    def _check_combination(self) -> None:
        """Only the paper's options together, or the published code's together."""
        paper, released = (
            {name for name, values in _BUNDLE.items() if getattr(self, name) == values[side]}
            for side in (0, 1)
        )
        if paper == set(_BUNDLE):
            if self.compressed_mask != "past_complete":
                raise UsageError(
                    f"compressed_mask={self.compressed_mask!r} with the paper's other options: "
                    "want 'past_complete', or start from NSASpec.released()"
                )
        elif released != set(_BUNDLE):
            raise UsageError(
                f"{', '.join(sorted(released))} of the published code with the paper's "
                f"{', '.join(sorted(paper))}: only NSASpec.paper() and NSASpec.released() are "
                "implemented, each as a whole"
            )
        elif self.selection != "scores":
            raise UsageError(
                f"selection={self.selection!r} with the released preset: want 'scores', or start "
                "from NSASpec.paper()"
            )
        elif self.block_size != 64 or self.num_selected_blocks > 32:
            raise UsageError(
                f"block_size={self.block_size!r}, num_selected_blocks={self.num_selected_blocks}: "
                "the released preset exists for block_size 64 and at most 32 selected blocks"
            )

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """The paper's attention: causal, native GQA, vision keys only."""
        return cls(**overrides)

    @classmethod
    def released(cls, **overrides: Any) -> Self:
        """What the published code (commit 377eeb9) computes. See docs/semantics.md."""
        options: dict[str, Any] = {
            "compressed_mask": "current_and_later",
            "head_map": "padded",
            "importance": "misread_lse",
            "force_current_block": False,
            "tie_order": "bitonic",
            "stream": "sequence",
            "pool_partial_block": True,
            "vision_mask": "position_ids",
            "temporal_ids": "fixed",
        }
        return cls(**(options | overrides))

    def with_options(self, **overrides: Any) -> Self:
        """A copy with some fields replaced."""
        return replace(self, **overrides)

    def attention_keys(self, frame_size: int | None = None) -> int:
        """Keys a row attends to as the paper counts them, n * s + w (compressed not counted)."""
        size = self.block_size
        if size == "frame":
            if type(frame_size) is not int or frame_size < 1:
                raise UsageError(
                    f"frame_size={shown(frame_size)} with block_size='frame': want the tokens of "
                    "a frame"
                )
            parts = -(-frame_size // MAX_BLOCK_SIZE)
            size = -(-frame_size // parts)
        return self.num_selected_blocks * size + self.window_size
