"""`convert`: a checkpoint of Qwen2.5-VL, of the released VideoNSA or of ours, written as ours.

Without gates it can be written as stock Qwen2.5-VL instead.

Tensors stream from the source to the target, one shard in memory at a time.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from videonsa.disk import check_room, place_folder
from videonsa.errors import ModelError, UsageError
from videonsa.models._hf import Qwen2_5_VLConfig
from videonsa.models.checkpoints.awq import read_tensor
from videonsa.models.checkpoints.checkpoint import HEAD, Checkpoint, is_ignored, read_checkpoint
from videonsa.models.checkpoints.hub import FILES
from videonsa.models.checkpoints.stock import check_gates, complete_stock, stock_config
from videonsa.models.checkpoints.stored import (
    FLOATS,
    INDEX,
    SINGLE,
    Layout,
    StoredTensor,
    has_gates,
    is_gate,
    name_on_disk,
)
from videonsa.models.config import QWEN, VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.gates import init_gates
from videonsa.models.methods import DENSE, SPARSE
from videonsa.ops.spec import BRANCHES
from videonsa.parsing import one_line

MAX_SHARD_BYTES = 5_000_000_000
"""As of the published checkpoints."""
Kind = Literal["videonsa", "qwen2_5_vl"]
"""Model types that are written."""
FreshGates = Literal["half", "released"]
_OF_THE_WEIGHTS = ("config.json", "quant_config.json", "quantize_config.json")
"""JSON files that say how the source's weights are stored; the latter two are quantisers'."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What `convert` wrote."""

    folder: Path
    num_tensors: int
    num_bytes: int
    """Of all tensors."""
    files: tuple[str, ...]
    """The names of all files in the folder."""
    notes: tuple[str, ...]
    """One line each: choices that were made for these weights."""


class _Planned(NamedTuple):
    """A tensor that the target will hold."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: StoredTensor | None
    """None: a fresh gate."""

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Kind = "videonsa",
    drop_gates: bool = False,
    revision: str | None = None,
    layout: Layout = "hub",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    fresh_gates: FreshGates | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Write a checkpoint: config, safetensors, tokenizer files.

    The target appears whole, by a renaming at the end, or not at all. Values are kept bit by bit
    unless `dtype` changes them. AWQ weights of int4 are written dequantised.

    Args:
        source: a folder, or an id of the Hugging Face hub: whatever `load_model` takes.
        target: the folder to write.
        to: "videonsa" writes one of ours, whose config has the NSA's spec; "qwen2_5_vl" a stock
            Qwen2.5-VL, which transformers and vLLM load without this package, with a model card.
        drop_gates: leave out the gates of weights that become a stock Qwen2.5-VL, which then
            attends densely and answers otherwise.
        revision: branch, tag or commit of a hub id.
        layout: names on disk, "hub" (`model.layers.*`, `visual.*`, as published) or
            "transformers" (`model.language_model.*`, `model.visual.*`).
        dtype: of the weights; None keeps that of each, and is the config's for AWQ.
        max_shard_bytes: a file holds at most so many bytes of tensors, but at least one tensor.
        fresh_gates: give weights without gates untrained ones, which start as `gate_init` says.
        seed: of the fresh gates.
        force: replace the target if it is a checkpoint or an empty folder.
        progress: told a line after each file.

    Raises:
        ModelError: a source that cannot be used, one that has gates already or, for a stock
            Qwen2.5-VL, at all.
        UsageError: a target that exists or cannot be written, a size that is not positive, options
            that exclude each other.
    """
    _check_options(to, layout, max_shard_bytes, drop_gates, fresh_gates)
    # These follow what can be followed; those of pathlib raise on a loop, or without a home.
    place = Path(os.path.realpath(os.path.expanduser(target)))
    _check_target(place, force=force)
    checkpoint = _read_source(source, revision, drop_gates=drop_gates, fresh_gates=fresh_gates)
    num_dropped = check_gates(checkpoint, drop=drop_gates) if to == QWEN else 0
    if checkpoint.folder.resolve().is_relative_to(place):
        raise UsageError(f"target {place} is or holds the source: name another folder")
    notes = () if num_dropped else checkpoint.notes
    if checkpoint.is_awq:
        dtype = dtype or checkpoint.config.dtype
        written = str(dtype).removeprefix("torch.")
        notes += (f"int4 weights (AWQ) are written dequantised, in {written}",)
    plan = _plan(checkpoint, dtype, with_gates=to != QWEN)
    shards = _cut(plan, max_shard_bytes)
    config = stock_config(checkpoint.config) if to == QWEN else checkpoint.config
    with _whole_folder(place, _size(plan)) as folder:
        _write_shards(folder, shards, _values(checkpoint, plan, seed), layout, progress)
        _write_config(folder, config, dtype)
        _copy_files(checkpoint.folder, folder)
        if to == QWEN:
            notes += complete_stock(folder, config, num_dropped=num_dropped)
        read_checkpoint(folder)  # what cannot be loaded is never renamed to the target
    return Conversion(
        folder=place,
        num_tensors=len(plan),
        num_bytes=_size(plan),
        files=tuple(sorted(path.name for path in place.iterdir())),
        notes=notes,
    )


def _check_options(
    to: Kind,
    layout: Layout,
    max_shard_bytes: int,
    drop_gates: bool,
    fresh_gates: FreshGates | None,
) -> None:
    if max_shard_bytes < 1:
        raise UsageError(f"max_shard_bytes={max_shard_bytes}: want a positive number of bytes")
    if layout not in ("hub", "transformers"):
        raise UsageError(f"layout={layout!r}: want 'hub' or 'transformers'")
    if to not in ("videonsa", QWEN):
        raise UsageError(f"to={to!r}: want 'videonsa' or {QWEN!r}")
    if drop_gates and to != QWEN:
        raise UsageError(f"drop_gates without to={QWEN!r} (--to): leave it out, or pass both")
    if fresh_gates and to == QWEN:
        raise UsageError(
            f"fresh_gates={fresh_gates!r} with to={QWEN!r}: stock Qwen2.5-VL has no gates; leave "
            "one of the two out"
        )


def _read_source(
    source: str | Path,
    revision: str | None,
    *,
    drop_gates: bool,
    fresh_gates: FreshGates | None,
) -> Checkpoint:
    """The checkpoint to convert, whose config says how the target attends."""
    checkpoint = read_checkpoint(
        source,
        revision=revision,
        attention=SPARSE if fresh_gates else DENSE if drop_gates else None,
        fresh_gates=fresh_gates is not None,
        gate_init=fresh_gates,
    )
    if fresh_gates and has_gates(checkpoint.tensors):
        raise ModelError(
            f"the weights in {checkpoint.folder} have gates: fresh ones are for weights without; "
            "leave out fresh_gates (--fresh-gates)"
        )
    return checkpoint


def _check_target(target: Path, *, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise UsageError(
            f"target {target} exists: name another folder, or replace it with force=True (--force)"
        )
    if not target.is_dir() or (any(target.iterdir()) and not (target / "config.json").is_file()):
        raise UsageError(
            f"target {target} exists and is no checkpoint, so it is not replaced: name another "
            "folder"
        )


def _plan(checkpoint: Checkpoint, dtype: torch.dtype | None, *, with_gates: bool) -> list[_Planned]:
    """The tensors of the target, in the order in which `_values` gives them."""
    config = checkpoint.config
    dropped = {HEAD} if config.tie_word_embeddings else set()
    plan = [
        _Planned(name, tensor.shape, dtype or FLOATS[tensor.dtype], tensor)
        for name, tensor in checkpoint.tensors.items()
        if name not in dropped and not is_ignored(name) and (with_gates or not is_gate(name))
    ]
    if config.gates and not has_gates(checkpoint.tensors):
        for layer in range(config.text_config.num_hidden_layers):
            prefix = f"model.language_model.layers.{layer}.self_attn."
            like = FLOATS[checkpoint.tensors[f"{prefix}q_proj.weight"].dtype]
            plan += [
                _Planned(prefix + name, tuple(gate.shape), dtype or like, None)
                for name, gate in _named(*_gate_modules(config))
            ]
    return plan


def _gate_modules(config: VideoNSAConfig) -> tuple[nn.Linear, nn.Linear]:
    """The gates of one layer, without values."""
    hidden, heads = config.text_config.hidden_size, config.text_config.num_attention_heads
    first = nn.Linear(hidden, hidden, device="meta")
    return first, nn.Linear(hidden, len(BRANCHES) * heads, device="meta")


def _named(first: nn.Linear, second: nn.Linear) -> Iterator[tuple[str, Tensor]]:
    for name, linear in (("g_proj_1", first), ("g_proj_2", second)):
        yield f"{name}.weight", linear.weight.detach()
        yield f"{name}.bias", linear.bias.detach()


def _cut(plan: list[_Planned], max_bytes: int) -> list[list[_Planned]]:
    """Successive tensors that fit into a file together."""
    shards: list[list[_Planned]] = []
    room = 0
    for tensor in plan:
        if not shards or tensor.num_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards


def _size(plan: list[_Planned]) -> int:
    return sum(tensor.num_bytes for tensor in plan)


def _values(checkpoint: Checkpoint, plan: list[_Planned], seed: int) -> Iterator[Tensor]:
    """The tensors of the plan, one after the other."""
    for tensor in plan:
        if tensor.source is not None:
            yield read_tensor(tensor.source, tensor.dtype)
    if any(tensor.source is None for tensor in plan):
        for layer in range(checkpoint.config.text_config.num_hidden_layers):
            first, second = (x.to_empty(device="cpu") for x in _gate_modules(checkpoint.config))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + layer)
                init_gates(first, second, checkpoint.config.gate_init)
            for _, gate in _named(first, second):
                yield gate


def _write_shards(
    folder: Path,
    shards: list[list[_Planned]],
    values: Iterator[Tensor],
    layout: Layout,
    progress: Callable[[str], None] | None,
) -> None:
    total, written = sum(map(_size, shards)), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        names = [name_on_disk(tensor.name, layout) for tensor in shard]
        weight_map |= dict.fromkeys(names, file)
        _save(folder / file, names, shard, values)
        written += _size(shard)
        if progress is not None:
            progress(
                f"wrote file {number} of {len(shards)}, {written / 1e9:.2f} of {total / 1e9:.2f} GB"
            )
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _save(path: Path, names: list[str], shard: list[_Planned], values: Iterator[Tensor]) -> None:
    """Write a file; its tensors are free again when this returns."""
    tensors = {
        name: next(values).to(planned.dtype).contiguous()
        for name, planned in zip(names, shard, strict=True)
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors leaves it to its owner alone


def _write_config(folder: Path, config: Qwen2_5_VLConfig, dtype: torch.dtype | None) -> None:
    if isinstance(config, VideoNSAConfig):
        config.architectures = [VideoNSAForConditionalGeneration.__name__]
    if dtype is not None:
        for part in (config, config.text_config, config.vision_config):
            part.dtype = dtype
    config.save_pretrained(folder)


def _copy_files(source: Path, folder: Path) -> None:
    """Tokenizer, chat template, processor: what stands beside config and weights."""
    for pattern in FILES:
        for path in source.glob(pattern):
            other = path.name in _OF_THE_WEIGHTS or path.match("*.index.json")
            if path.is_file() and not other:
                shutil.copyfile(path, folder / path.name)


@contextmanager
def _whole_folder(target: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to fill, which becomes the target if all goes well and else is removed."""
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        raise UsageError(
            f"{partial} exists, of a conversion that still runs or was killed: wait for it or "
            "remove it"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remedy = "name a folder on a larger disk"
        check_room(f"target {target}", target.parent, num_bytes, remedy=remedy)
        partial.mkdir()
        try:
            yield partial
            place_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"cannot write {target} ({one_line(error)}): name another folder"
        ) from error
