"""AWQ weights of int4 in the GEMM layout: found among the stored tensors, and dequantised.

A Linear of K inputs and N outputs is stored as `qweight` int32 [K, N / 8], `qzeros` int32
[K / group, N / 8] and `scales` [K / group, N]; the weight is (q - zero) * scale, transposed. An
int32 holds eight columns, out of order. What is stored so is told by the names of the tensors:
the config's `modules_to_not_convert` adds nothing.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from videonsa.errors import ModelError
from videonsa.models.checkpoints.quantization_config import AwqFormat
from videonsa.models.checkpoints.stored import FLOATS, StoredTensor, listed

_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
"""The lowest bit of each of eight columns in their int32."""
_PARTS = ("qweight", "qzeros", "scales")
_VALUES_AT_ONCE = 2**22
"""Of a weight: a few times as many bytes are taken beside it while it is dequantised."""


def with_weights(
    stored: Mapping[str, StoredTensor], awq: AwqFormat, where: str
) -> dict[str, StoredTensor]:
    """The tensors with one `weight` in place of each `qweight`, `qzeros` and `scales`.

    Args:
        stored: by the names of the model's parameters.
        awq: as the config states it.
        where: the folder, for the message.

    Raises:
        ModelError: parts that are missing or do not fit each other, or no AWQ weights at all.
    """
    found: dict[str, StoredTensor] = {}
    packed: set[str] = set()
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            names = [f"{module}.{each}" for each in _PARTS]
            lacking = [each for each in names if each not in stored]
            if lacking or f"{module}.weight" in stored:
                problem = f"lacks {listed(lacking)}" if lacking else f"has {module}.weight too"
                raise ModelError(f"{where} holds {name}, of AWQ, and {problem}: download it again")
            found[f"{module}.weight"] = _weight(tuple(stored[each] for each in names), awq, where)
            packed.update(names)
        else:
            found[name] = tensor
    if not packed:
        raise ModelError(
            f"{where}: config.json states AWQ weights, but none of the tensors is a qweight: "
            "remove quantization_config if the weights are floats, or download both again"
        )
    return {name: tensor for name, tensor in found.items() if name not in packed}


def _weight(parts: tuple[StoredTensor, ...], awq: AwqFormat, where: str) -> StoredTensor:
    """The weight that three tensors make, their shapes and dtypes checked."""
    qweight, _, scales = parts
    inputs = qweight.shape[0] if qweight.shape else 0
    group = inputs if awq.group_size == -1 else awq.group_size
    columns = qweight.shape[-1] if qweight.shape else 0
    rows = inputs // group if group and inputs % group == 0 else 0
    wanted = ((inputs, columns), (rows, columns), (rows, columns * len(_SHIFTS)))
    fits = tuple(part.shape for part in parts) == wanted and rows > 0
    if not fits or [qweight.dtype, parts[1].dtype] != ["I32"] * 2 or scales.dtype not in FLOATS:
        stated = ", ".join(f"{part.name} {part.dtype} {list(part.shape)}" for part in parts)
        raise ModelError(
            f"{where}: {stated} are no AWQ weights of int4 in the GEMM layout in groups of "
            f"{awq.group_size}: take another checkpoint, or the model's float weights"
        )
    outputs = columns * len(_SHIFTS)
    return StoredTensor(qweight.file, qweight.name, (outputs, inputs), scales.dtype, parts)


def read_tensor(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """The values of a tensor, dequantised if it is stored in parts."""
    if stored.parts:
        return _dequantised(stored, dtype)
    with safe_open(stored.file, framework="pt") as file:
        values: Tensor = file.get_tensor(stored.name).to(dtype)
    return values


def _dequantised(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """The weight [N, K], some groups at a time, each value rounded once."""
    outputs, inputs = stored.shape
    groups = stored.parts[-1].shape[0]
    size = inputs // groups
    step = max(_VALUES_AT_ONCE // (size * outputs), 1)
    weight = torch.empty(outputs, inputs, dtype=dtype)
    with ExitStack() as files:
        qweight, qzeros, scales = (
            files.enter_context(safe_open(part.file, framework="pt")).get_slice(part.name)
            for part in stored.parts
        )
        for first in range(0, groups, step):
            last = min(first + step, groups)
            rows = slice(first * size, last * size)
            levels = unpack(qweight[rows]).view(last - first, size, outputs)
            levels = levels - unpack(qzeros[first:last])[:, None]
            values = levels.float().mul_(scales[first:last].float()[:, None])
            weight[:, rows] = values.flatten(0, 1).to(dtype).t()
    return weight


def unpack(packed: Tensor) -> Tensor:
    """Values of 0 to 15, int8 [R, N], from int32 [R, N / 8]."""
    levels = torch.empty(*packed.shape, len(_SHIFTS), dtype=torch.int8)
    for column, shift in enumerate(_SHIFTS):
        levels[..., column] = (packed >> shift) & 15
    return levels.flatten(1)


class ValuesOnDisk:
    """A tensor that is read when it is sliced, `tensor[...]`, as transformers does for a model."""

    def __init__(self, stored: StoredTensor, dtype: torch.dtype) -> None:
        self.stored, self.dtype = stored, dtype

    def __getitem__(self, index: Any) -> Tensor:
        """Of its values, all of which are read."""
        return read_tensor(self.stored, self.dtype)[index]


def describe_awq(dtype: torch.dtype | str, weights: str) -> str:
    """What to say of a model whose weights are stored as AWQ.

    Args:
        dtype: of the model.
        weights: as they are in memory, "full" or quantised again.
    """
    name = str(dtype).removeprefix("torch.")
    then = (
        ": no memory is saved at run time (--weights int8, or fp8 or int4 on a GPU, quantises them "
        "again)"
        if weights == "full"
        else f", then quantised again, to {weights}"
    )
    return f"int4 weights (AWQ) are dequantised to {name} when loaded{then}"
