"""A small AWQ quantiser: checkpoints as AutoAWQ writes them, for tests alone.

It rounds to the nearest level, without AWQ's search for scales, which changes values and no layout.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of eight neighbouring columns, the one in each four bits of an int32, lowest bits first."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def stated(group: int, **fields: Any) -> dict[str, Any]:
    """The `quantization_config` of Qwen's own AWQ checkpoints, but for the group."""
    return {
        "bits": 4,
        "group_size": group,
        "modules_to_not_convert": ["visual"],
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
        **fields,
    }


def packed(levels: Tensor) -> Tensor:
    """int32 [R, N / 8] of levels [R, N] from 0 to 15."""
    words = torch.zeros(levels.shape[0], levels.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate(PLACES):
        words += levels[:, column::8].long() << (4 * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def quantised(weight: Tensor, group: int) -> dict[str, Tensor]:
    """The three tensors of a weight [N, K] whose rows are rounded in groups of inputs."""
    outputs, inputs = weight.shape
    group = inputs if group == -1 else group
    rows = weight.float().t().reshape(inputs // group, group, outputs)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-6).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    levels = (rows / scales.float()[:, None]).round() + zeros[:, None]
    return {
        "qweight": packed(levels.clamp(0, 15).reshape(inputs, outputs)),
        "qzeros": packed(zeros),
        "scales": scales,
    }


def by_hand(parts: dict[str, Tensor]) -> Tensor:
    """The weight [N, K] of three tensors in float32, value by value."""
    qweight, qzeros = parts["qweight"].tolist(), parts["qzeros"].tolist()
    scales = parts["scales"].float().tolist()
    inputs, outputs = len(qweight), len(scales[0])
    group = inputs // len(scales)
    weight = torch.empty(outputs, inputs)
    for k in range(inputs):
        for n in range(outputs):
            shift = 4 * PLACES.index(n % 8)
            level = (qweight[k][n // 8] >> shift) % 16
            zero = (qzeros[k // group][n // 8] >> shift) % 16
            weight[n, k] = (level - zero) * scales[k // group][n]
    return weight


def write_awq(
    folder: Path, source: Path, *, group: int, num_shards: int = 3, **fields: Any
) -> Path:
    """An AWQ checkpoint of the model in another folder, in float16 and in shards.

    The tensors go round the shards, so that the three of a weight are in different files.
    """
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copy(path, folder)
    tensors: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            module = name.removesuffix(".weight")
            if "visual" not in name and name.endswith(".weight") and module.endswith(LINEARS):
                parts = quantised(tensor, group)
                tensors |= {f"{module}.{part}": value for part, value in parts.items()}
            else:
                tensors[name] = tensor.half()
    weight_map = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        names = list(tensors)[number::num_shards]
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "quant_config.json").write_text("{}")
    config = json.loads((source / "config.json").read_text())
    config.pop("dtype", None)
    config |= {"torch_dtype": "float16", "quantization_config": stated(group, **fields)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
