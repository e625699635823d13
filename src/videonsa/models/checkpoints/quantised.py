"""Weights of 8 or 4 bits, by torchao: the projections and MLPs of the decoder layers, no other.

Embeddings, head, norms, gates and the vision tower stay as they are: together they are a fifth of
the 7B model, and gates decide what a row attends to.
"""

import contextlib
import logging
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from videonsa.errors import ModelError, UsageError

Weights = Literal["full", "int8", "int4"]
WEIGHTS: tuple[Weights, ...] = ("full", "int8", "int4")
QUANTISED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INT4_GROUP = 128
"""Values of a row that share a scale and a zero."""
INT4_COLUMNS, INT4_ROWS = 1024, 8
"""Weights of 4 bits are padded to multiples of these by torchao's kernel."""
NOTES = MappingProxyType(
    {
        "int8": "weights of the decoder layers in 8 bits, each row with its own scale (torchao)",
        "int4": f"weights of the decoder layers in 4 bits, in groups of {INT4_GROUP} (torchao)",
    }
)


def check_weights(weights: Weights, device: torch.device) -> None:
    """Refuse, before anything is loaded, weights that cannot be had.

    Raises:
        UsageError: an unknown kind, or 4 bits elsewhere than on a GPU.
        ModelError: torchao is not installed.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"weights={weights!r}: want one of {', '.join(WEIGHTS)}")
    if weights == "int4" and device.type != "cuda":
        raise UsageError(
            f"weights='int4' on {device}: torchao's products of 4 bits need an NVIDIA GPU; use int8"
        )
    if weights != "full":
        _torchao()


def quantise(model: Any, weights: Weights, device: torch.device) -> None:
    """Quantise a model in place, layer by layer on `device`: never two copies of all weights.

    The quantised layers end on `device`; the caller moves the rest.

    Raises:
        ModelError: torchao is not installed, or cannot quantise here.
    """
    if weights == "full":
        return
    torchao = _torchao()
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


def _is_quantised(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] in QUANTISED


def _torchao() -> Any:
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
