"""Why tokens are decoded by the plain forward, or by static steps that are not captured."""

from typing import Any

import torch

from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.stepped import SteppedModel
from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.ops.triton.support import why_not_cached


def why_not_static(
    model: SteppedModel, cache: VideoNSACache, method: AttentionMethod | None
) -> str | None:
    """Why text after a cache cannot be read by static steps, in one line; None where it can.

    Args:
        model: whose layers they are.
        cache: what was read before, which may be nothing.
        method: how the call attends; None is as the model does.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "its layers are on several devices"
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return "autocast is on"
    method = model.method if method is None else method
    if method.leaves_after and not method.text_is_dense:
        return "tokens leave inside its layers"
    if not method.text_is_dense:
        return f"method {method.name!r} need not be dense attention after the video"
    if len(cache.tokens.frame_sizes) > 1:
        return f"a batch of {len(cache.tokens.frame_sizes)} prompts, each with keys of its own"
    if cache.tokens.is_padded:
        return "a prompt with padding"
    return None


def why_not_static_text(
    model: SteppedModel, cache: VideoNSACache, method: AttentionMethod | None
) -> str | None:
    """As `why_not_static` for texts of several tokens, which are read at once."""
    if (reason := why_not_static(model, cache, method)) is not None:
        return reason
    if not cache.get_seq_length():
        return "nothing was read before"
    return (model.method if method is None else method).why_at_once()


def why_not_captured(
    model: SteppedModel,
    cache: VideoNSACache,
    method: AttentionMethod | None,
    recorder: Recorder | None = None,
) -> str | None:
    """Why such steps cannot be captured in CUDA graphs, in one line; None where they can.

    Args:
        model: whose layers they are.
        cache: what was read before, which may be nothing.
        method: how the call attends; None is as the model does.
        recorder: that looks on.
    """
    device = model.device.type
    if device != "cuda":
        return f"it runs on {'a CPU' if device == 'cpu' else device}, not on a CUDA GPU"
    if recorder is not None:
        return "a recorder looks on"
    config = model.config.text_config
    weight: Any = model.get_input_embeddings().weight
    queries = weight.new_empty(0, config.hidden_size // config.num_attention_heads)
    if (reason := why_not_cached(queries)) is not None:
        return f"no kernels for attention over a cache: {reason}"
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return "its modules have forward hooks"
    return why_not_static(model, cache, method)
