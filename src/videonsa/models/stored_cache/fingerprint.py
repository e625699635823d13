"""What a stored cache holds for: of which weights, how they attend, where tokens stand."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import videonsa
from videonsa.machine import package_versions
from videonsa.models.methods import AttentionMethod
from videonsa.models.modeling import SparseVideoModel

_SAMPLES = 256
"""Values of each tensor that go into the digest of the weights."""
_INTS = MappingProxyType({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64})
_TEXT = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("rms_norm_eps", "rope_parameters"),
)
_VISION = (
    *("patch_size", "temporal_patch_size", "spatial_merge_size", "tokens_per_second"),
    *("window_size", "fullatt_block_indexes", "num_heads"),
)
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def fingerprint(
    model: SparseVideoModel, *, method: AttentionMethod | None = None
) -> dict[str, Any]:
    """What must be equal where a cache of this model is used again, as JSON.

    The digest of the weights is of every tensor's name, shape and dtype and of 256 of its values,
    evenly spread: training, a merged adapter or quantisation change it, but a change of single
    values elsewhere does not. It costs one gather and one transfer for each device and dtype.

    Args:
        model: any; where its weights lie does not matter, and they may be offloaded.
        method: how the calls attend; None is the model's own.
    """
    method, config = method or model.method, model.config
    return dict(
        json.loads(
            json.dumps(
                {
                    "weights": _digest(_tensors(model)),
                    "dtype": str(model.dtype).removeprefix("torch."),
                    "method": method.name,
                    "spec": method.parameters(),
                    "temporal_ids": method.temporal_ids or config.nsa_spec.temporal_ids,
                    "text": {name: getattr(config.text_config, name, None) for name in _TEXT},
                    "vision": {name: getattr(config.vision_config, name, None) for name in _VISION},
                    "tokens": {name: getattr(config, name, None) for name in _TOKENS},
                },
                default=str,
            )
        )
    )


def versions() -> dict[str, Any]:
    """Of what computes a cache: others may round differently."""
    return {"videonsa": videonsa.__version__, **package_versions("torch", "transformers")}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Where two fingerprints differ, in a few words each."""
    for name in sorted({*saved, *now}):
        before, after = saved.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{path}{name}.")
        elif path + name == "weights":
            yield "other weights"
        else:
            yield f"{path}{name} {_short(before)}, now {_short(after)}"


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:60]


def _tensors(model: Any) -> dict[str, Any]:
    """Parameters and buffers by name; where accelerate offloads them, those that it keeps."""
    found: dict[str, Any] = dict(model.state_dict())
    for name, tensor in found.items():
        if isinstance(tensor, Tensor) and tensor.device.type == "meta":
            parent, _, child = name.rpartition(".")
            hook = getattr(model.get_submodule(parent), "_hf_hook", None)
            kept = getattr(hook, "weights_map", None)
            found[name] = tensor if kept is None else kept[child]
    return found


def _digest(tensors: Mapping[str, Any]) -> str:
    """32 hexadecimal digits."""
    parts = [(name, part) for key in sorted(tensors) for name, part in _plain(key, tensors[key])]
    digest = hashlib.sha256()
    for (name, part), values in zip(parts, _sampled([part for _, part in parts]), strict=True):
        digest.update(f"{name} {list(part.shape)} {part.dtype}\n".encode())
        digest.update(values)
    return digest.hexdigest()[:32]


def _plain(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a weight is made of: one, or those of a quantised one."""
    if not isinstance(value, Tensor):
        return
    if hasattr(value, "__tensor_flatten__"):
        for part in value.__tensor_flatten__()[0]:
            yield from _plain(f"{name}/{part}", getattr(value, part))
    else:
        yield name, value.detach()


def _sampled(tensors: list[Tensor]) -> list[bytes]:
    """Some values of each, as bytes: few transfers, however many tensors there are."""
    found = [b""] * len(tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.device.type != "meta" and tensor.numel():
            groups.setdefault((tensor.device, _INTS[tensor.element_size()]), []).append(index)
    for (_, dtype), members in groups.items():
        samples = [_spread(tensors[index].flatten().view(dtype)) for index in members]
        together = torch.cat(samples).cpu().split([len(sample) for sample in samples])
        for index, values in zip(members, together, strict=True):
            found[index] = values.numpy().tobytes()
    return found


def _spread(values: Tensor) -> Tensor:
    """At most `_SAMPLES` of `[N]`, at an odd distance: not all in one column of a matrix."""
    step = max((len(values) // _SAMPLES - 1) | 1, 1)
    return values[::step][:_SAMPLES]
