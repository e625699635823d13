"""Which parameters train, their groups, and whether they are finite; LoRA through peft."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from videonsa.errors import UsageError, missing_package
from videonsa.models.checkpoints.stored import is_gate
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.ops.spec import BRANCHES
from videonsa.train.settings import ModelSettings, OptimizerSettings

CLOSED_LOGIT = -2.0
"""Logit before the division by the gate temperature of 0.3: a gate of 0.0013."""
_PROJECTIONS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.\w+_proj)"


def choose_parameters(model: VideoNSAForConditionalGeneration, settings: ModelSettings) -> Any:
    """Freeze the parts that the settings name, or wrap the model in LoRA; gates always train.

    Raises:
        UsageError: LoRA is asked for and peft is not installed.
    """
    if settings.lora_rank:
        return _with_lora(model, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_gate(name) or _part_of(name) not in settings.freeze)
    return model


def _part_of(name: str) -> str:
    if ".visual." not in f".{name}":
        return "llm"
    return "merger" if ".merger." in name else "vit"


def _with_lora(model: VideoNSAForConditionalGeneration, settings: ModelSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise missing_package("peft", extra="train") from error
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_PROJECTIONS,
        modules_to_save=["g_proj_1", "g_proj_2"] if model.config.gates else None,
    )
    return get_peft_model(model, config)


@torch.no_grad()
def close_gates(model: VideoNSAForConditionalGeneration, closed_from: Mapping[str, int]) -> None:
    """Set gates to 0.0013 for every input; training may open them again.

    Args:
        model: with gates.
        closed_from: for each branch, the first layer whose gate is closed.

    Raises:
        UsageError: the model has fewer layers.
    """
    layers = model.model.language_model.layers
    for branch, first in closed_from.items():
        if first >= len(layers):
            raise UsageError(
                f"model.closed_gates has '{branch}:{first}': the model has {len(layers)} layers; "
                f"want at most {len(layers) - 1}"
            )
        index = BRANCHES.index(branch)
        for layer in layers[first:]:
            gate = layer.self_attn.g_proj_2
            gate.weight[index :: len(BRANCHES)] = 0.0
            gate.bias[index :: len(BRANCHES)] = CLOSED_LOGIT


def parameter_groups(
    named: Mapping[str, nn.Parameter], settings: OptimizerSettings, *, decayed: set[str]
) -> list[dict[str, Any]]:
    """Up to four groups: gates and the rest, each split into parameters that decay and that do not.

    Args:
        named: parameters by name; those that require gradients are trained.
        settings: learning rates and decay.
        decayed: names of the parameters that decay.
    """
    rates = {True: settings.gate_learning_rate or settings.learning_rate}
    rates[False] = settings.learning_rate
    groups = []
    for gates in (False, True):
        for decays in (True, False):
            chosen = [
                parameter
                for name, parameter in named.items()
                if parameter.requires_grad
                and is_gate(name) == gates
                and (name in decayed) == decays
            ]
            if chosen:
                decay = settings.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rates[gates], "weight_decay": decay})
    return groups


def all_finite(weights: Iterable[Tensor]) -> bool:
    """Whether every value is finite; of a sharded weight only the local shard is looked at."""
    own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
    return all(bool(torch.isfinite(weight).all()) for weight in own)
