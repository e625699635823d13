"""`HybridAttention`: one layer's projections, and attention by the method of the step."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videonsa.errors import UsageError
from videonsa.models._hf import Cache
from videonsa.models.cache import VideoNSACache
from videonsa.models.fused import rotate
from videonsa.models.gates import branch_gates, init_gates
from videonsa.models.linears import linear_rows
from videonsa.models.methods import Attended
from videonsa.models.step import AttentionStep
from videonsa.ops.spec import BRANCHES


class HybridAttention:
    """Self-attention of one decoder layer (paper section 2.2).

    A family's own attention, the other base of a layer's class, brings the projections; here are
    the gates of the branches, where the model has them, and the call of the step's method.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    config: Any
    """Of the language model."""
    head_dim: int
    num_heads: int
    layer_idx: int
    g_proj_1: nn.Linear
    g_proj_2: nn.Linear

    def add_gates(self, *, hidden_size: int, num_heads: int, gate_init: str | None) -> None:
        """Add the two projections of the gates, which start as `gate_init` says; None adds none."""
        self.gate_init = gate_init
        self.has_gates = gate_init is not None
        if self.has_gates:
            self.g_proj_1 = nn.Linear(hidden_size, hidden_size)
            self.g_proj_2 = nn.Linear(hidden_size, len(BRANCHES) * num_heads)

    def init_gates(self) -> None:
        """Set fresh gates as the config says; parameters that a checkpoint filled stay."""
        if self.gate_init is not None:
            init_gates(self.g_proj_1, self.g_proj_2, self.gate_init)

    def branch_gates(self, hidden: Tensor, step: AttentionStep, *, temperature: float) -> Tensor:
        """Gates of the branches, `[B, T, HQ, 3]`, from the layer's normed input."""
        step.mark(self.layer_idx, "gates begin")
        projections = (self.g_proj_1, self.g_proj_2)
        gates = branch_gates(
            hidden, *projections, num_heads=self.num_heads, temperature=temperature
        )
        step.mark(self.layer_idx, "gates end")
        return gates

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
        rows = linear_rows(hidden_states, [self.q_proj, self.k_proj, self.v_proj])
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in rows)  # [B, T, HQ or H, D]
        del rows
        step.mark(self.layer_idx, "attention begins")
        q, k = rotate(q, k, *position_embeddings)
        if step.gather_keys is not None:
            k, v = step.gather_keys(k, v)
        if past_key_values is not None:
            k, v = past_key_values.update(k.transpose(1, 2), v.transpose(1, 2), self.layer_idx)
            k, v = k.transpose(1, 2), v.transpose(1, 2)  # [B, S, H, D]
        attended = self._attend(hidden_states, q, k, v, step)
        if isinstance(past_key_values, VideoNSACache):
            past_key_values.count_pairs(partial(_pairs_of_a_head, attended, step))
        if step.recorder is not None:
            step.recorder.record(self.layer_idx, q, k, attended._replace(values=v))
        out = attended.output.flatten(-2)
        del attended
        step.mark(self.layer_idx, "attention ends")
        return linear_rows(out, [self.o_proj])[0], None

    def _attend(
        self, hidden_states: Tensor, q: Tensor, k: Tensor, v: Tensor, step: AttentionStep
    ) -> Attended:
        if step.parts is None:
            found = step.method.attend(self, hidden_states, q, k, v, step)
            attended = Attended(found) if isinstance(found, Tensor) else found
            if attended.output.shape != q.shape:  # others may broadcast, and be wrong in silence
                raise UsageError(
                    f"method {step.method.name!r} gave an output {list(attended.output.shape)}: "
                    f"want {list(q.shape)}, that of q"
                )
            return attended
        outputs, first = [], 0
        for part in step.parts:
            rows = slice(first, first + part.num_tokens)
            keys = slice(part.step.tokens.vision_mask.shape[1])  # views: no key is copied
            inputs = (hidden_states[:, rows], q[:, rows], k[:, keys], v[:, keys])
            outputs.append(self._attend(*inputs, part.step.to(q.device)).output)
            first = rows.stop
        return Attended(torch.cat(outputs, dim=1))


def _pairs_of_a_head(attended: Attended, step: AttentionStep) -> float | Tensor:
    """Query-key pairs of the layer, of one query head on average."""
    if attended.pairs is None:
        return step.pairs()
    return attended.pairs / attended.output.shape[2]
