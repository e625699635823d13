"""The vision tower's slow parts: attention one window at a time, odd widths, a convolution.

Transformers' tower attends to one window or frame after the other in a Python loop. Here equal
lengths share one call, and the tower's indices are computed once for a run of equal frames.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videonsa.errors import ModelError
from videonsa.models._hf import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLMLP,
    Qwen2_5_VLVisionAttention,
)
from videonsa.models.fused import FusedRMSNorm, gated_mlp, rotate_vision, silu_mul
from videonsa.models.rope import Grid
from videonsa.models.tower_probe import ProbedBlocks

ALIGNED = 64
"""Values: 128 bytes in bfloat16."""
Segments = list[Tensor]
"""Row numbers `[N, n]` of the segments of each length n; together they hold every row once."""


class VisionPlan(NamedTuple):
    """Indices of one forward of the tower; P patches, in windows order from `window_index` on."""

    position_ids: Tensor  # [P, 2] row and column of each patch
    window_index: Tensor  # [P / merge^2] merged tokens, windows first to last
    frame_lengths: Tensor  # patches of each frame
    window_lengths: Tensor  # patches of each window

    def tower_inputs(self, device: torch.device) -> dict[str, Any]:
        """The keyword arguments of the tower's forward."""
        return {
            "position_ids": self.position_ids.to(device),
            "window_index": self.window_index.to(device),
            "cu_seqlens": _cumulative(self.frame_lengths).to(device),
            "cu_window_seqlens": _cumulative(self.window_lengths).to(device),
            "frame_segments": equal_segments(self.frame_lengths, device=device),
            "window_segments": equal_segments(self.window_lengths, device=device),
        }


def plan_vision(grids: Sequence[Grid], *, merge_size: int, window_tokens: int) -> VisionPlan:
    """Order, positions and segments of the patches of images and videos.

    Args:
        grids: (t, h, w) of each, in patches.
        merge_size: patches merged along each side.
        window_tokens: side of an attention window in merged tokens.

    Raises:
        ModelError: a grid that merging does not divide.
    """
    positions, orders, frames, windows = [], [], [], []
    first = 0
    for (height, width), run in groupby(grids, key=lambda grid: grid[1:]):
        if height % merge_size or width % merge_size or min(height, width) < 1:
            raise ModelError(
                f"a grid of {height} x {width} patches: want multiples of {merge_size}, at least "
                "one; resize the frames to multiples of patch_size * merge_size"
            )
        count = sum(grid[0] for grid in run)
        order, lengths = _window_order(height // merge_size, width // merge_size, window_tokens)
        starts = first + len(order) * torch.arange(count)
        orders.append((starts[:, None] + order).flatten())
        windows.append((lengths * merge_size**2).repeat(count))
        frames.append(torch.full((count,), height * width))
        positions.append(_patch_positions(height, width, merge_size).repeat(count, 1))
        first += len(order) * count
    return VisionPlan(*map(torch.cat, (positions, orders, frames, windows)))


def frame_chunks(grids: Sequence[Grid], max_patches: int) -> Iterator[list[Grid]]:
    """Cut images and videos between frames: no patch attends outside its frame.

    Args:
        grids: (t, h, w) of each, in patches.
        max_patches: of a chunk; a single frame may have more.

    Yields:
        The grids of each chunk.
    """
    chunk: list[Grid] = []
    room = max_patches
    for frames, height, width in grids:
        left = frames
        while left:
            fits = min(left, max(room, 0) // (height * width))
            if fits == 0 and chunk:
                yield chunk
                chunk, room = [], max_patches
                continue
            taken = max(fits, 1)
            chunk.append((taken, height, width))
            room -= taken * height * width
            left -= taken
    if chunk:
        yield chunk


def _window_order(height: int, width: int, side: int) -> tuple[Tensor, Tensor]:
    """Merged tokens of a frame window by window, and the tokens of each window."""
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    window = (rows[:, None] * (int(columns[-1]) + 1) + columns).flatten()
    return window.argsort(stable=True), window.bincount()


def _patch_positions(height: int, width: int, merge_size: int) -> Tensor:
    """Row and column `[h * w, 2]` of a frame's patches, those of a merged token together."""
    grid = torch.stack(
        torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1
    )
    blocks = grid.unflatten(1, (-1, merge_size)).unflatten(0, (-1, merge_size))
    positions: Tensor = blocks.transpose(1, 2).reshape(-1, 2)
    return positions


def _cumulative(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def equal_segments(lengths: Tensor, *, device: torch.device) -> Segments:
    """Group consecutive segments by length.

    Args:
        lengths: rows of each segment, on the CPU; together they cover all rows.
        device: of the result.
    """
    ends = lengths.cumsum(0)
    return [
        ((ends[lengths == n] - n)[:, None] + torch.arange(n)).to(device)
        for n in lengths.unique().tolist()
    ]


class BatchedVisionAttention(Qwen2_5_VLVisionAttention):
    """Attention within windows, or within frames, of the rows of many images and videos."""

    def __init__(self, config: Any, *, block: int, windowed: bool) -> None:
        super().__init__(config)
        self.block = block
        self.windowed = windowed

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        frame_segments: Segments | None = None,
        window_segments: Segments | None = None,
        probed: ProbedBlocks | None = None,
        **_: Any,
    ) -> Tensor:
        """Attend, rows `[P, hidden]` in and out; `probed` sees queries and keys of whole frames.

        `cu_seqlens` (int32 `[N + 1]`, the borders of the segments) is read only where the segments
        are not given, which costs a device synchronisation.
        """
        segments = window_segments if self.windowed else frame_segments
        if segments is None:
            segments = equal_segments(cu_seqlens.diff().cpu(), device=hidden_states.device)
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # [P, 3, H, D]
        q, k, v = qkv.unbind(1)
        if position_embeddings is not None:
            q, k = rotate_vision(q, k, *position_embeddings)
        if probed is not None and not self.windowed:
            probed.see(self.block, q, k, segments)
        if len(segments) == 1:  # rows are in order already
            out = _attend(*(x.unflatten(0, segments[0].shape) for x in (q, k, v))).flatten(0, 1)
        else:
            out = torch.empty_like(q)
            for rows in segments:
                out[rows] = _attend(q[rows], k[rows], v[rows])
        return self.proj(out.flatten(1))  # type: ignore[no-any-return]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention of each of N segments, `[N, n, H, D]` in and out."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


class LinearPatchEmbed(Qwen2_5_VisionPatchEmbed):
    """The embedding of whole patches as the product that it is, not as a convolution."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Patches `[P, channels * temporal * patch * patch]` to rows `[P, hidden]`."""
        weight = self.proj.weight
        return F.linear(hidden_states.to(weight.dtype), weight.flatten(1))


class AlignedMLP(Qwen2_5_VLMLP):
    """The gated MLP with a width whose rows begin at whole cache lines.

    The 7B tower's 3,420 values a row miss the alignment that a GPU's fast products want. Zeros
    beside the weights change nothing; they are made for each call, for the parameters stay as they
    are.
    """

    def __init__(self, config: Any, bias: bool = False) -> None:
        super().__init__(config, bias=bias)
        self.is_silu = config.hidden_act == "silu"

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Rows `[P, hidden]` in and out."""
        linears = (self.gate_proj, self.up_proj, self.down_proj)
        missing = -self.intermediate_size % ALIGNED
        if not missing or any(type(linear) is not nn.Linear for linear in linears):
            # Adapters and quantised weights do their own products.
            return gated_mlp(self, hidden_state, is_silu=self.is_silu)
        down = self.down_proj
        product = self._padded_product(hidden_state, missing)
        return F.linear(product, F.pad(down.weight, (0, missing)), down.bias)

    def _padded_product(self, hidden_state: Tensor, missing: int) -> Tensor:
        """In a function of its own: gate and up are let go before the last product."""
        gate, up = (
            F.linear(
                hidden_state,
                F.pad(linear.weight, (0, 0, 0, missing)),
                F.pad(linear.bias, (0, missing)),
            )
            for linear in (self.gate_proj, self.up_proj)
        )
        product: Tensor = silu_mul(gate, up) if self.is_silu else self.act_fn(gate) * up
        return product


def replace_slow_parts(tower: nn.Module, config: Any) -> None:
    """Give a Qwen2.5-VL vision tower this module's parts, of the same parameters, not initialised.

    Args:
        tower: the tower, with `patch_embed` and `blocks`.
        config: its vision config.
    """
    tower.patch_embed = LinearPatchEmbed(
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        in_channels=config.in_channels,
        embed_dim=config.hidden_size,
    )
    for index, block in enumerate(tower.blocks):  # type: ignore[arg-type]
        windowed = index not in config.fullatt_block_indexes
        block.norm1 = FusedRMSNorm(config.hidden_size, eps=block.norm1.variance_epsilon)
        block.norm2 = FusedRMSNorm(config.hidden_size, eps=block.norm2.variance_epsilon)
        block.attn = BatchedVisionAttention(config, block=index, windowed=windowed)
        block.mlp = AlignedMLP(config, bias=True)
