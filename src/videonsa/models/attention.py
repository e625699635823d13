"""`HybridAttention`: NSA for the rows of images and videos, dense attention for text rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias, CausalVariant

from videonsa.errors import ModelError, UsageError
from videonsa.models._hf import Cache, Qwen2_5_VLAttention
from videonsa.models.config import VideoNSAConfig
from videonsa.models.fused import rotate
from videonsa.models.gates import branch_gates, init_gates
from videonsa.models.recorder import AttentionRecorder
from videonsa.ops.layout import HybridLayout
from videonsa.ops.nsa import Backend, hybrid_attention
from videonsa.ops.spec import BRANCHES, NSASpec
from videonsa.ops.text_rows import dense_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionStep:
    """What the attention of every layer needs to know about one forward step.

    T rows are new; they are the last of the S keys.
    """

    attention: Literal["nsa", "dense"]
    """"dense" also where the step brings no vision row: the two are then the same."""
    spec: NSASpec
    vision_mask: Tensor
    """bool `[B, S]`: keys of images and videos."""
    attention_mask: Tensor | None
    """bool `[B, S]`, False where padded; None where nothing is."""
    layout: HybridLayout | None = None
    """The rows by kind and the blocks, worked out once for all layers; for the `paper` preset."""
    pieces: Sequence[tuple[int, int]] | None = None
    """Rows and keys of each packed sample, for dense attention; the layout has its own."""
    gather_keys: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """Turns the k and v of a process's own rows into those of the S keys; with a cache, of all new
    rows in order, which the cache then takes."""
    parts: "Sequence[StepPart] | None" = None
    """Of the rows, where each part sees the keys up to its own last row only."""
    backend: Backend = "auto"
    recorder: AttentionRecorder | None = None
    copies: dict[torch.device, Self] = field(default_factory=dict, repr=False)
    """Of this step on other devices, made once for all their layers."""

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """The step with its tensors on `device`; itself where they are there."""
        vision_mask = self.vision_mask.to(device, non_blocking=non_blocking)
        if vision_mask is self.vision_mask:
            return self
        place = vision_mask.device
        if place not in self.copies:
            padding, layout = self.attention_mask, self.layout
            self.copies[place] = replace(
                self,
                vision_mask=vision_mask,
                attention_mask=None if padding is None else padding.to(place),
                layout=None if layout is None else layout.to(place),
                copies={},
            )
        return self.copies[place]


class StepPart(NamedTuple):
    """Rows that follow one another, and see the first keys of their step."""

    num_rows: int
    step: AttentionStep
    """As if these rows were the last; its vision mask tells how many keys there are."""


class LowerRightBias(CausalBias):
    """The last T rows are causal among S keys: `causal_lower_right(T, S)` without its memory.

    PyTorch's function hands T and S on to the tensor's constructor too, which allocates
    2 * T * S float32 that nobody reads.
    """

    def __new__(cls, num_rows: int, num_keys: int) -> Self:
        """A tensor without entries."""
        return torch.empty(0).as_subclass(cls)

    def __init__(self, num_rows: int, num_keys: int) -> None:
        super().__init__(CausalVariant.LOWER_RIGHT, num_rows, num_keys)


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    pieces: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Causal GQA of the last T rows over all S keys.

    Without padding no mask of T * S entries is made on a GPU in float16 or bfloat16: where T < S
    PyTorch's FlashAttention knows which corner of the scores is causal. A CPU makes one. With
    padding rows go part by part with a mask of bounded size (`dense_rows`).

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        key_mask: bool `[B, S]`, False where padded; None where nothing is. A row that sees no key
            gets 0.
        pieces: rows and keys of each packed sample; its rows are the last of its keys, and see no
            others. B = 1, no `key_mask`.

    Returns:
        `[B, T, HQ, D]`.
    """
    if pieces is not None:
        rows, keys = map(list, zip(*pieces, strict=True))
        samples = zip(q.split(rows, 1), k.split(keys, 1), v.split(keys, 1), strict=True)
        return torch.cat([dense_attention(*one) for one in samples], dim=1)
    num_rows, num_keys = q.shape[1], k.shape[1]
    if key_mask is None:
        mask = LowerRightBias(num_rows, num_keys) if num_rows > 1 else None
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True
        )
        return out.transpose(1, 2)
    positions = torch.arange(num_keys - num_rows, num_keys, device=k.device).expand(len(q), -1)
    return dense_rows(q, k, v, positions=positions, key_mask=key_mask)


class HybridAttention(Qwen2_5_VLAttention):
    """Self-attention of one decoder layer (paper section 2.2).

    Qwen2.5-VL's projections, and two more for the gates of the branches where `config.attention`
    is "nsa".
    """

    def __init__(self, config: VideoNSAConfig, layer_idx: int) -> None:
        super().__init__(config.text_config, layer_idx)
        if self.attention_dropout or self.sliding_window is not None:
            raise ModelError(
                f"attention_dropout={self.attention_dropout}, sliding_window="
                f"{self.sliding_window}: the hybrid attention has neither; set them to 0 and None"
            )
        self.gate_init = config.gate_init
        self.has_gates = config.attention == "nsa"
        if self.has_gates:
            self.g_proj_1 = nn.Linear(self.hidden_size, self.hidden_size)
            self.g_proj_2 = nn.Linear(self.hidden_size, len(BRANCHES) * self.num_heads)

    def init_gates(self) -> None:
        """Set fresh gates as the config says; parameters that a checkpoint filled stay."""
        if self.has_gates:
            init_gates(self.g_proj_1, self.g_proj_2, self.gate_init)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        step: AttentionStep | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            hidden_states: `[B, T, hidden]`.
            position_embeddings: cos and sin of the new rows, each `[B, T, D]`.
            past_key_values: the cache, to which the new keys and values are appended.
            step: what holds for all layers of this step.

        Returns:
            `[B, T, hidden]`, and None in place of attention weights.
        """
        if step is None or position_embeddings is None:
            raise UsageError(
                "the attention was called without a step: call the whole model "
                "(VideoNSAForConditionalGeneration), not its inner parts"
            )
        step = step.to(hidden_states.device)  # layers may be on several
        q = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim))  # [B, T, HQ, D]
        k = self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]
        v = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        q, k = rotate(q, k, *position_embeddings)
        if step.gather_keys is not None:
            k, v = step.gather_keys(k, v)
        if past_key_values is not None:
            k, v = past_key_values.update(k.transpose(1, 2), v.transpose(1, 2), self.layer_idx)
            k, v = k.transpose(1, 2), v.transpose(1, 2)  # [B, S, H, D]
        out = self._attend(hidden_states, q, k, v, step)
        if step.recorder is not None:
            step.recorder.record_text(self.layer_idx, q, k)
        return self.o_proj(out.flatten(-2)), None

    def _attend(
        self, hidden_states: Tensor, q: Tensor, k: Tensor, v: Tensor, step: AttentionStep
    ) -> Tensor:
        if step.parts is not None:
            outputs, first = [], 0
            for part in step.parts:
                rows = slice(first, first + part.num_rows)
                keys = slice(part.step.vision_mask.shape[1])  # views: no key is copied
                inputs = (hidden_states[:, rows], q[:, rows], k[:, keys], v[:, keys])
                outputs.append(self._attend(*inputs, part.step.to(q.device)))
                first = rows.stop
            return torch.cat(outputs, dim=1)
        if step.attention == "dense":
            return dense_attention(q, k, v, key_mask=step.attention_mask, pieces=step.pieces)
        return self._hybrid(hidden_states, q, k, v, step)

    def _hybrid(
        self, hidden_states: Tensor, q: Tensor, k: Tensor, v: Tensor, step: AttentionStep
    ) -> Tensor:
        gates = branch_gates(
            hidden_states,
            self.g_proj_1,
            self.g_proj_2,
            num_heads=q.shape[2],
            temperature=step.spec.gate_temperature,
        )
        result = hybrid_attention(
            q,
            k,
            v,
            gates,
            step.vision_mask,
            spec=step.spec,
            attention_mask=step.attention_mask,
            return_branches=step.recorder is not None,
            backend=step.backend,
            layout=step.layout,
        )
        if isinstance(result, Tensor):
            return result
        if step.recorder is not None:
            step.recorder.record_selection(self.layer_idx, result.selected_blocks, step.spec)
        return result.output
