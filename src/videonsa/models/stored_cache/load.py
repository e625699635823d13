"""`load_cache`: a `VideoNSACache` from a folder, checked before it is given."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videonsa.errors import BudgetError
from videonsa.machine import ran_out_of_memory
from videonsa.models.attention import HybridAttention
from videonsa.models.cache import RowMajorLayer, VideoNSACache
from videonsa.models.computed import ComputedPairs
from videonsa.models.growing import ROOM
from videonsa.models.methods import AttentionMethod
from videonsa.models.modeling import SparseVideoModel
from videonsa.models.stored_cache.contents import (
    ADDED,
    CHANNELS,
    KEYS,
    ROWS,
    TOKENS,
    VALUES,
    Contents,
    as_json,
    check_files,
    check_same,
    damaged,
    layer_file,
    named_folder,
    read_contents,
)
from videonsa.models.stored_cache.eight_bits import (
    from_levels,
)
from videonsa.models.stored_cache.fingerprint import fingerprint
from videonsa.models.stored_cache.records import records_of
from videonsa.models.stored_cache.tensor_files import (
    DTYPES,
    DamagedError,
    Staging,
    TensorReader,
    TensorSpec,
    pieces_of,
    places_of,
    settle,
)
from videonsa.models.stored_cache.transfers import Done, Transfers
from videonsa.parsing import one_line

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedCache:
    """What was read."""

    cache: VideoNSACache
    state: dict[str, Any]
    """As it was given to `save_cache`."""
    tensors: dict[str, Tensor]
    """As they were given to `save_cache`, on the CPU."""
    notes: tuple[str, ...]
    """One line each: what its user should know."""
    num_bytes: int
    seconds: float


def load_cache(
    folder: str | Path,
    model: SparseVideoModel,
    *,
    method: AttentionMethod | None = None,
    also: Mapping[str, Any] | None = None,
    spare: int = ROOM,
    progress: bool | None = None,
) -> LoadedCache:
    """Read what `save_cache` wrote, into memory beside the model's layers.

    Args:
        folder: to read.
        model: with the weights that filled it; the layers may lie on other devices than then.
        method: how it will attend; None is the model's.
        also: as for `save_cache`.
        spare: tokens for which there is room behind those read.
        progress: a bar on stderr once it takes over a second; None is on a terminal only.

    Raises:
        UsageError: a folder that is missing, of something else, of a newer format, truncated,
            damaged or of another model; says which.
        BudgetError: it does not fit the memory.
    """
    begun, path = time.perf_counter(), named_folder(folder)
    contents = read_contents(path)
    now = fingerprint(model, method=method) | as_json(also or {})
    notes = check_same(path, contents, now)
    if contents.precision == "int8":
        notes = (*notes, f"{folder} keeps keys and values in 8 bits: answers may differ a little")
    check_files(path, contents)
    devices = [_device_of(layer) for layer in model.decoder_layers]
    with torch.inference_mode(mode=False), _fits(path, contents):
        memory = [
            _memory(contents, index, device, spare)
            for index, device in zip(range(contents.num_layers), devices, strict=False)
        ]
        plain = [
            {name: _empty(spec) for name, spec in contents.files[file].tensors.items()}
            for file in (TOKENS, ADDED)
        ]
        settle(devices)
        with Transfers[None]("loading", contents.num_bytes, progress=progress) as transfers:
            for index, own in enumerate(memory):
                transfers.start(partial(_read_layer, path, contents, layer_file(index), own))
            for name, tensors in zip((TOKENS, ADDED), plain, strict=True):
                transfers.start(partial(_read_plain, path, contents, name, tensors))
            transfers.finish()
        cache = VideoNSACache()
        for index, (keys, values) in enumerate(memory):
            shape = contents.files[layer_file(index)].tensors[KEYS].shape
            cache.layers.append(RowMajorLayer.holding(keys, values, num_rows=shape[1]))
        place = next(iter(devices)) if model.device.type == "meta" else model.device
        cache.records = records_of(contents.records, plain[0], place)
        stated = contents.computed
        cache.computed = None if stated is None else ComputedPairs.of(stated)
    return LoadedCache(
        cache=cache,
        state=contents.state,
        tensors=plain[1],
        notes=notes,
        num_bytes=contents.num_bytes,
        seconds=time.perf_counter() - begun,
    )


def _memory(
    contents: Contents, index: int, device: torch.device, spare: int
) -> tuple[Tensor, Tensor]:
    """Memory for keys and values of a layer, `[B, M, H, D]` with room behind what is held."""
    samples, rows, *rest = contents.files[layer_file(index)].tensors[KEYS].shape
    shape = (samples, rows + spare, *rest)
    keys, values = (
        torch.empty(shape, dtype=DTYPES[contents.dtype], device=device) for _ in range(2)
    )
    return keys, values


def _read_layer(
    folder: Path, contents: Contents, name: str, memory: tuple[Tensor, Tensor], done: Done
) -> None:
    specs = contents.files[name].tensors
    with _reading(folder, contents, name, memory[0].device, done) as reader:
        for kind, place in zip((KEYS, VALUES), memory, strict=True):
            held = place[:, : specs[kind].shape[1]]
            if contents.precision == "exact":
                for piece in pieces_of(held):
                    reader.read_into(piece)
            else:
                scales = [_empty(specs[kind + end], held.device) for end in (CHANNELS, ROWS)]
                _read_levels(reader, held, *scales)


def _read_levels(reader: TensorReader, held: Tensor, channels: Tensor, scales: Tensor) -> None:
    reader.read_into(channels)
    reader.read_into(scales)
    for sample, rows in places_of(held):
        levels = torch.empty_like(held[sample, rows], dtype=torch.int8)
        reader.read_into(levels)
        held[sample, rows] = from_levels(levels, scales[sample, rows], channels[sample])


def _read_plain(
    folder: Path, contents: Contents, name: str, tensors: Mapping[str, Tensor], done: Done
) -> None:
    with _reading(folder, contents, name, _CPU, done) as reader:
        for tensor in tensors.values():
            reader.read_into(tensor)


@contextmanager
def _reading(
    folder: Path, contents: Contents, name: str, device: torch.device, done: Done
) -> Iterator[TensorReader]:
    """A file of tensors, which is as it was written if the body ends well."""
    path, file = folder / name, contents.files[name]
    staging = Staging(device)
    try:
        with torch.inference_mode(), staging.stream(), path.open("rb", buffering=0) as opened:
            reader = TensorReader(opened, file.tensors, staging, done)
            yield reader
        if reader.finish() != file.facts:
            raise DamagedError("its checksum differs")
    except (DamagedError, OSError) as error:
        raise damaged(path, one_line(error)) from error


def _empty(spec: TensorSpec, device: torch.device = _CPU) -> Tensor:
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=device)


def _device_of(layer: nn.Module) -> torch.device:
    """Where a decoder layer computes, also where its weights are offloaded by accelerate."""
    device = next(layer.parameters()).device
    if device.type != "meta":
        return device
    attention: Any = next(part for part in layer.modules() if isinstance(part, HybridAttention))
    return torch.device(attention.q_proj._hf_hook.execution_device)


@contextmanager
def _fits(folder: Path, contents: Contents) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise BudgetError(
            f"the cache in {folder} has {contents.num_bytes / 1e9:.2f} GB on the disk and does not "
            "fit the memory beside the model: free memory, or take a larger GPU"
        ) from error
