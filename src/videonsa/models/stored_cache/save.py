"""`save_cache`: a `VideoNSACache` into a folder, whole or not at all."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videonsa.disk import check_room, new_folder
from videonsa.errors import UsageError
from videonsa.models._hf import DynamicLayer
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import AttentionMethod
from videonsa.models.modeling import SparseVideoModel
from videonsa.models.stored_cache.contents import (
    ADDED,
    CONTENTS,
    PRECISIONS,
    TOKENS,
    Contents,
    Precision,
    StoredFile,
    as_json,
    check_replaceable,
    layer_file,
    layer_specs,
    named_folder,
)
from videonsa.models.stored_cache.eight_bits import (
    channel_scales,
    row_scales,
    to_levels,
)
from videonsa.models.stored_cache.fingerprint import fingerprint, versions
from videonsa.models.stored_cache.records import stored_records, tensors_of
from videonsa.models.stored_cache.tensor_files import (
    FileFacts,
    Specs,
    Staging,
    TensorSpec,
    TensorWriter,
    bytes_of_file,
    pieces_of,
    places_of,
    settle,
)
from videonsa.models.stored_cache.transfers import Done, Transfers
from videonsa.parsing import one_line

_CPU = torch.device("cpu")


class SavedCache(NamedTuple):
    """What was written."""

    num_bytes: int
    seconds: float


class _Output(NamedTuple):
    """A file to write."""

    specs: Specs
    pieces: Callable[[], Iterator[Tensor]]
    """Contiguous, those of all tensors in order."""
    device: torch.device


def save_cache(
    folder: str | Path,
    cache: VideoNSACache,
    model: SparseVideoModel,
    *,
    method: AttentionMethod | None = None,
    precision: Precision = "exact",
    state: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    also: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> SavedCache:
    """Write a cache into a folder, which appears or is replaced once all of it is on the disk.

    Args:
        folder: to write; one that exists must be empty or a stored cache.
        cache: is not changed.
        model: which filled it.
        method: how it attended; None is the model's.
        precision: "exact", or "int8": half the bytes of bfloat16; `eight_bits` tells the error.
        state: a JSON object that `load_cache` gives back.
        tensors: more that it gives back, always exact, by name.
        also: more that must be equal where the cache is loaded, by name, as JSON.
        progress: a bar on stderr once it takes over a second; None is on a terminal only.

    Raises:
        UsageError: a folder of something else, one that another process is writing, or too little
            room; says how much is needed. What was there is as it was.
        ValueError: a state that is no JSON.
    """
    begun = time.perf_counter()
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision!r}: want one of {', '.join(PRECISIONS)}")
    target = named_folder(folder).resolve()
    check_replaceable(target)
    contents = Contents(
        precision=precision,
        dtype=TensorSpec.of(cache.layers[0].keys).dtype if cache.layers else "F32",
        num_layers=len(cache.layers),
        records=stored_records(cache.records),
        files={},
        fingerprint=fingerprint(model, method=method) | as_json(also or {}),
        versions=versions(),
        state=as_json(state or {}),
        computed=None if cache.computed is None else cache.computed.stated(),
    )
    outputs = {
        **{layer_file(i): _layer_output(one, contents) for i, one in enumerate(cache.layers)},
        TOKENS: _plain_output(tensors_of(cache.records)),
        ADDED: _plain_output(tensors or {}),
    }
    settle(output.device for output in outputs.values())
    num_bytes = sum(bytes_of_file(output.specs) for output in outputs.values())
    with _writing(target), new_folder(target, work="a save") as new:
        remedy = "name a folder on a larger disk"
        if precision == "exact":
            remedy += ', or save in 8 bits (precision="int8")'
        check_room(f"saving to {target}", target.parent, num_bytes, remedy=remedy)
        with Transfers[FileFacts]("saving", num_bytes, progress=progress) as transfers:
            for name, output in outputs.items():
                transfers.start(partial(_write, new / name, output))
            written = dict(zip(outputs, transfers.finish(), strict=True))
        for name, output in outputs.items():
            contents.files[name] = StoredFile(**written[name]._asdict(), tensors=dict(output.specs))
        (new / CONTENTS).write_text(contents.to_json(), encoding="utf-8")
    return SavedCache(num_bytes, time.perf_counter() - begun)


def _write(path: Path, output: _Output, done: Done) -> FileFacts:
    staging = Staging(output.device)
    with torch.inference_mode(), staging.stream(), path.open("xb", buffering=0) as file:
        writer = TensorWriter(file, output.specs, staging, done)
        for piece in output.pieces():
            writer.write(piece)
        return writer.finish()


def _layer_output(layer: DynamicLayer, contents: Contents) -> _Output:
    tensors = [layer.keys.transpose(1, 2), layer.values.transpose(1, 2)]  # [B, S, H, D]
    specs = layer_specs(tuple(tensors[0].shape), contents.dtype, contents.precision)
    pieces = pieces_of if contents.precision == "exact" else _pieces_of_levels

    def all_pieces() -> Iterator[Tensor]:
        for tensor in tensors:
            yield from pieces(tensor)

    return _Output(specs, all_pieces, layer.keys.device)


def _pieces_of_levels(tensor: Tensor) -> Iterator[Tensor]:
    """Of `[B, S, H, D]`: scales of the channels, of the rows, and levels."""
    channels = [channel_scales(sample) for sample in tensor]
    yield torch.stack(channels)
    scales = tensor.new_empty(tensor.shape[:-1], dtype=torch.float16)
    for sample, rows in places_of(tensor):
        scales[sample, rows] = row_scales(tensor[sample, rows], channels[sample])
    yield from pieces_of(scales)
    for sample, rows in places_of(tensor):
        yield to_levels(tensor[sample, rows], scales[sample, rows], channels[sample])


def _plain_output(tensors: Mapping[str, Tensor]) -> _Output:
    def all_pieces() -> Iterator[Tensor]:
        for tensor in tensors.values():
            yield from pieces_of(tensor.reshape(1, -1))

    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    devices = [tensor.device for tensor in tensors.values() if tensor.device.type != "cpu"]
    return _Output(specs, all_pieces, next(iter(devices), _CPU))


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {target} ({one_line(error)}): name another folder; what was there is "
            "as it was"
        ) from error
