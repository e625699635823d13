"""Norms, gated products and rotations in one pass over memory each, by Liger's kernels on a GPU.

PyTorch writes every intermediate of them: at 128K tokens of the 7B model a fifth of the time of
prefill, and half of the vision tower's. Elsewhere, or without the package, PyTorch computes them.
"""

import functools
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videonsa.models._hf import Qwen2_5_VLRMSNorm, Qwen2MLP, apply_rotary_pos_emb_vision
from videonsa.models.fp8 import Fp8Linear, fp8_gated_mlp
from videonsa.models.linears import gated_rows, linear_rows

_logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 2**14
"""That go through an MLP, and through all layers of a long prefill, at a time: the MLP of the 7B
model takes 1.9 GB for so many, and a GPU is busy with them."""


class _Kernels(NamedTuple):
    """Autograd functions of liger-kernel."""

    rms_norm: Any
    silu_mul: Any
    rope: Any


@functools.cache
def _kernels() -> _Kernels | None:
    """None, and a line in the log, where the package is missing."""
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.rope import LigerRopeFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        _logger.warning(
            "liger-kernel is not installed: norms, gated products and rotations take several "
            "passes over memory each (pip install 'videonsa[gpu]')"
        )
        return None
    return _Kernels(LigerRMSNormFunction, LigerSiLUMulFunction, LigerRopeFunction)


def _kernels_for(*tensors: Tensor) -> _Kernels | None:
    """The kernels where they can: tensors of one floating dtype on an NVIDIA GPU."""
    first = tensors[0]
    if not first.is_cuda or torch.version.hip is not None or not first.numel():
        return None
    if any(x.dtype != first.dtype for x in tensors):
        return None
    return _kernels()


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape and dtype. On a GPU its backward pass may run only once."""
    kernels = _kernels_for(gate, up)
    if kernels is None:
        return nn.functional.silu(gate) * up
    with torch.cuda.device(gate.device):  # Triton launches on the current one, not on theirs
        product: Tensor = kernels.silu_mul.apply(gate, up)
    return product


def gated_mlp(mlp: Any, x: Tensor, *, is_silu: bool) -> Tensor:
    """An MLP of `gate_proj`, `up_proj`, `act_fn` and `down_proj` of rows `[..., hidden]`."""
    rows: Tensor
    if is_silu and isinstance(mlp.down_proj, Fp8Linear):
        rows = fp8_gated_mlp(mlp, x)
    elif is_silu and (gated := gated_rows(x, mlp.gate_proj, mlp.up_proj)) is not None:
        rows = linear_rows(gated, [mlp.down_proj])[0]
    elif is_silu and _kernels_for(x) is not None:
        rows = mlp.down_proj(silu_mul(mlp.gate_proj(x), mlp.up_proj(x)))
    else:  # never more than three of its tensors at a time
        rows = mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    return rows


def angles_to_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Angles as `rotate` takes them for rows like x: so that no layer turns them into float32."""
    return (cos, sin) if _kernels_for(x) is None else (cos.float(), sin.float())


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding, the first half of D paired with the second.

    On a GPU q and k may be overwritten: they must be fresh outputs of a linear layer, which no one
    else reads.

    Args:
        q: `[B, T, HQ, D]`.
        k: `[B, T, H, D]`.
        cos: `[B, T, D]`, both halves alike.
        sin: likewise.

    Returns:
        q and k, turned.
    """
    kernels = _kernels_for(q, k)
    if kernels is None:
        return _rotate_one(q, cos, sin), _rotate_one(k, cos, sin)
    # In float32 with one rounding at the end.
    with torch.cuda.device(q.device):
        turned = kernels.rope.apply(q.transpose(1, 2), k.transpose(1, 2), cos.float(), sin.float())
    q, k = (x.transpose(1, 2) for x in turned)
    return q, k


def _rotate_one(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    # Under autocast the angles are float32, and so is what they turn.
    return (x * cos.unsqueeze(2) + turned * sin.unsqueeze(2)).to(x.dtype)


def rotate_vision(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The vision tower's rotary embedding, computed in float32.

    Args:
        q: `[P, H, D]`; it and k may be overwritten.
        k: `[P, H, D]`.
        cos: `[P, D]`.
        sin: `[P, D]`.

    Returns:
        q and k, turned, in their dtype.
    """
    if _kernels_for(q, k) is None:
        turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb_vision(q, k, cos, sin)
        return turned
    q, k = rotate(q[None], k[None], cos[None], sin[None])
    return q[0], k[0]


class FusedRMSNorm(Qwen2_5_VLRMSNorm):
    """The norm of decoder layers and vision tower."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Rows `[..., width]` in and out."""
        kernels = _kernels_for(hidden_states, self.weight)
        if kernels is None:
            plain: Tensor = super().forward(hidden_states)
            return plain
        # "llama": the mean of squares in float32, the weight in the dtype of the rows. Not in
        # place: the gradient it would overwrite is also that of the residual.
        with torch.cuda.device(hidden_states.device):
            normed: Tensor = kernels.rms_norm.apply(
                hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", False
            )
        return normed


class FusedMLP(Qwen2MLP):
    """The gated MLP of a decoder layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Rows `[..., hidden]` in and out; part by part where no gradient is wanted."""
        is_silu = self.config.hidden_act == "silu"
        if torch.is_grad_enabled() or x[..., 0].numel() <= ROWS_PER_CHUNK:
            return gated_mlp(self, x, is_silu=is_silu)
        out = torch.empty_like(x)
        parts = (rows.flatten(0, -2).split(ROWS_PER_CHUNK) for rows in (out, x))
        for place, part in zip(*parts, strict=True):
            place.copy_(gated_mlp(self, part, is_silu=is_silu))
        return out


def fuse_layer(layer: nn.Module, config: Any) -> None:
    """Give a decoder layer the norms and the MLP of this module, not initialised.

    Args:
        layer: of Qwen2.5-VL's language model.
        config: its text config.
    """
    layer.input_layernorm = FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    layer.post_attention_layernorm = FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    layer.mlp = FusedMLP(config)
