"""Weights of 8 or 4 bits: the projections and MLPs of the decoder layers; in fp8 the tower's too.

Embeddings, head, norms and gates stay as they are, and but for fp8 the vision tower: together they
are a fifth of the 7B model, and gates decide what a row attends to. int8 and int4, by torchao, save
memory; products in fp8 are also faster.
"""

import contextlib
import logging
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from videonsa.errors import ModelError, UsageError
from videonsa.models.fp8 import Fp8Linear
from videonsa.models.vision import ALIGNED
from videonsa.ops.scaled import LEAST_CAPABILITY

Weights = Literal["full", "fp8", "int8", "int4"]
WEIGHTS: tuple[Weights, ...] = ("full", "fp8", "int8", "int4")
QUANTISED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUANTISED_TOWER = ("qkv", "proj")
"""Beside those of its MLPs."""
INT4_GROUP = 128
"""Values of a row that share a scale and a zero."""
INT4_COLUMNS, INT4_ROWS = 1024, 8
"""Weights of 4 bits are padded to multiples of these by torchao's kernel."""
NOTES = MappingProxyType(
    {
        "fp8": "weights of the decoder layers and the vision tower in float8, each row with its "
        "own scale; the rows that they multiply too",
        "int8": "weights of the decoder layers in 8 bits, each row with its own scale (torchao)",
        "int4": f"weights of the decoder layers in 4 bits, in groups of {INT4_GROUP} (torchao)",
    }
)


def check_weights(weights: Weights, device: torch.device) -> None:
    """Refuse, before anything is loaded, weights that cannot be had.

    Raises:
        UsageError: an unknown kind, 4 bits elsewhere than on a GPU, or fp8 on one that is too old.
        ModelError: torchao is not installed.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"weights={weights!r}: want one of {', '.join(WEIGHTS)}")
    if weights == "int4" and device.type != "cuda":
        raise UsageError(
            f"weights='int4' on {device}: torchao's products of 4 bits need an NVIDIA GPU; use int8"
        )
    if weights == "fp8":
        is_nvidia = device.type == "cuda" and torch.version.hip is None
        found = torch.cuda.get_device_capability(device) if is_nvidia else None
        check_multiplies(weights, str(device), found)
    if weights in ("int8", "int4"):
        import_torchao()


def check_multiplies(weights: Weights, where: str, capability: tuple[int, int] | None) -> None:
    """Refuse weights whose products a GPU does not have.

    Args:
        weights: what was asked for.
        where: the device, in words.
        capability: its compute capability; None where it is no NVIDIA GPU.

    Raises:
        UsageError: fp8 where there are no products of float8.
    """
    if weights != "fp8" or (capability is not None and capability >= LEAST_CAPABILITY):
        return
    found = "" if capability is None else " of compute capability {}.{}".format(*capability)
    raise UsageError(
        f"weights='fp8' on {where}{found}: products of float8 need an NVIDIA GPU of compute "
        "capability {}.{} or more (RTX 40, H100 and newer); use int8".format(*LEAST_CAPABILITY)
    )


def quantise(model: Any, weights: Weights, device: torch.device) -> None:
    """Quantise a model in place, layer by layer on `device`: never two copies of all weights.

    The quantised layers end on `device`; the caller moves the rest.

    Raises:
        ModelError: torchao is not installed, or cannot quantise here.
    """
    if weights == "full":
        return
    if weights == "fp8":
        for layer in (*model.model.language_model.layers, *model.model.visual.blocks):
            _quantise_fp8(layer.to(device))
        return
    torchao = import_torchao()
    if weights == "int8":
        config = torchao.Int8WeightOnlyConfig()
    else:
        config = torchao.Int4WeightOnlyConfig(
            group_size=INT4_GROUP, int4_packing_format="tile_packed_to_4d"
        )
    try:
        for layer in model.model.language_model.layers:
            layer.to(device)
            torchao.quantize_(layer, config, filter_fn=_is_quantised)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"torchao cannot make weights of {weights} on {device} ({reason}): use another kind"
        ) from error


def _quantise_fp8(layer: nn.Module) -> None:
    """Of a decoder layer or a block of the tower; MLPs become as wide inside as `ALIGNED` says."""
    for name, linear in list(layer.named_modules()):
        parent, _, child = name.rpartition(".")
        if child not in (*QUANTISED, *QUANTISED_TOWER) or not isinstance(linear, nn.Linear):
            continue
        more = {
            "more_out": -linear.out_features % ALIGNED if child in ("gate_proj", "up_proj") else 0,
            "more_in": -linear.in_features % ALIGNED if child == "down_proj" else 0,
        }
        setattr(layer.get_submodule(parent), child, Fp8Linear.of(linear, **more))


def _is_quantised(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] in QUANTISED


def import_torchao() -> Any:
    """`torchao.quantization`.

    Raises:
        ModelError: torchao is not installed.
    """
    try:
        with _quiet():
            import torchao.quantization as torchao
    except ImportError as error:
        raise ModelError(
            "quantised weights need torchao, which is not installed: pip install 'videonsa[quant]'"
        ) from error
    return torchao


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its import logs which of its optional kernels are not there; none of them is used here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
