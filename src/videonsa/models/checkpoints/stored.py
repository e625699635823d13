"""The tensors of a checkpoint on disk: names, files, shapes and dtypes, without their values.

Two layouts of names are in use: "hub", of Qwen2.5-VL's published files and what transformers still
writes (`model.layers.*`, `visual.*`), and "transformers", of the parameters in memory
(`model.language_model.*`, `model.visual.*`).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from videonsa.errors import ModelError
from videonsa.parsing import one_line, read_json_object

Layout = Literal["hub", "transformers"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

FLOATS = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
)
"""The dtypes of weights, by their names in safetensors."""

_GATE = re.compile(r"\.self_attn\.g_proj_[12]\.")
_OLD_NAMES = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)


class StoredTensor(NamedTuple):
    """Where a tensor is, and what it is like."""

    file: Path
    name: str
    """In the file."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: "BF16", "F32", ..."""
    parts: "tuple[StoredTensor, ...]" = ()
    """Of a weight of AWQ, the tensors that it is made from; `dtype` is that of its scales."""


def parameter_name(name: str) -> str:
    """The model's name of a tensor, from its name on disk in either layout."""
    for pattern, new in _OLD_NAMES:
        name = pattern.sub(new, name)
    return name


def name_on_disk(parameter: str, layout: Layout) -> str:
    """The name on disk of a parameter of the model."""
    if layout == "transformers":
        return parameter
    return re.sub(
        "^model.(language_model|visual)[.]",
        lambda match: "model." if match[1] == "language_model" else "visual.",
        parameter,
    )


def is_gate(name: str) -> bool:
    """Whether a tensor, in either layout, belongs to the gates of a layer."""
    return _GATE.search(name) is not None


def has_gates(names: Iterable[str]) -> bool:
    """Whether these are the weights of a VideoNSA model."""
    return any(map(is_gate, names))


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """The JSON object in a file. `ModelError` where there is none; `wanted` is what it is for."""
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}: want {wanted}")
    return read_json_object(path, error=ModelError, remedy="download it again")


def stored_names(folder: Path) -> frozenset[str]:
    """The names of the weights in a folder as its index or single file has them, or none."""
    if (folder / SINGLE).is_file():
        return frozenset(tensor.name for tensor in read_header(folder / SINGLE))
    return frozenset(_weight_map(folder / INDEX) if (folder / INDEX).is_file() else ())


def is_whole(folder: Path) -> bool:
    """Whether a folder has all files of weights; False where it has none."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return (folder / SINGLE).is_file()
    return all((folder / file).is_file() for file in _weight_map(folder / INDEX).values())


def read_stored(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by the names of the model's parameters, in their files' order.

    Raises:
        ModelError: a file that is missing or not readable, an index and shards that do not agree,
            a parameter that is stored twice.
    """
    stored: dict[str, StoredTensor] = {}
    for path, expected in weight_files(folder).items():
        found = read_header(path)
        if expected is not None:
            _check_shard(path, expected, {tensor.name for tensor in found})
        for tensor in found:
            name = parameter_name(tensor.name)
            if name in stored:
                raise ModelError(
                    f"{folder} holds {name} twice: {_where(stored[name])} and {_where(tensor)}: "
                    "want each weight once; download it again"
                )
            stored[name] = tensor
    return stored


def weight_files(folder: Path) -> Mapping[Path, frozenset[str] | None]:
    """The files with the weights, and the tensors that the index wants in each, if there is one.

    Raises:
        ModelError: a file that is missing, or an index that is none.
    """
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder} has no {SINGLE} and no {INDEX}: want a checkpoint in safetensors format"
        )
    files: dict[str, set[str]] = {}
    for name, file in _weight_map(folder / INDEX).items():
        files.setdefault(file, set()).add(name)
    lacking = [name for name in sorted(files) if not (folder / name).is_file()]
    if lacking or not files:
        raise ModelError(f"{folder} lacks {listed(lacking) or 'every shard'}: download it again")
    return {folder / name: frozenset(files[name]) for name in sorted(files)}


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json(index, "the index of the shards").get("weight_map")
    if not isinstance(names, dict):
        raise ModelError(f"{index} has no weight_map of names to files: download it again")
    for name, file in names.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise ModelError(
                f"{index} wants {name} in {file!r}: want the name of a file beside it; download "
                "it again"
            )
    return names


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, by its header. `ModelError` where it is none."""
    found = []
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part = file.get_slice(name)
                found.append(StoredTensor(path, name, tuple(part.get_shape()), part.get_dtype()))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is no readable safetensors file ({one_line(error)}): download it again"
        ) from error
    return found


def _check_shard(path: Path, expected: frozenset[str], found: set[str]) -> None:
    for title, names in (
        (f"lacks, though {INDEX} wants it there,", expected - found),
        (f"holds, though {INDEX} does not say so,", found - expected),
    ):
        if names:
            raise ModelError(f"{path} {title} {listed(sorted(names))}: download both again")


def _where(tensor: StoredTensor) -> str:
    return f"{tensor.name} in {tensor.file.name}"


def listed(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
