"""`cache.json`: what a folder with a stored cache holds, what for, and whether it is all there."""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from videonsa.disk import replaced_by
from videonsa.errors import UsageError
from videonsa.models.stored_cache.fingerprint import differences, versions
from videonsa.models.stored_cache.tensor_files import (
    DTYPES,
    FileFacts,
    Specs,
    TensorSpec,
    bytes_of_file,
)
from videonsa.parsing import one_line, read_json_object, typed

FORMAT, NUMBER = "videonsa cache", 1
"""Of the folder. A change that this code would misread gets the next number."""
CONTENTS = "cache.json"
TOKENS, ADDED = "tokens.safetensors", "session.safetensors"
Precision = Literal["exact", "int8"]
PRECISIONS: tuple[Precision, ...] = ("exact", "int8")
KEYS, VALUES = "keys", "values"
CHANNELS, ROWS = "_channels", "_rows"
"""Ends of the names of scales, see `eight_bits`."""
PLACES = "places"
RECORD = MappingProxyType(
    {
        "vision_mask": ("BOOL", 2),
        "attention_mask": ("BOOL", 2),
        "next_positions": ("I64", 2),
        "frame_sizes": ("I64", 1),
        "frame_counts": ("I64", 1),
        PLACES: ("I64", 1),
    }
)
"""dtype and dimensions of what is stored of each `CachedTokens`; places where tokens left."""
_OURS = re.compile(r"cache\.json|(tokens|session|layer-\d{3,})\.safetensors")
_REMEDY = "save it again, or take a copy"
_MOST_SHOWN = 60  # characters of a name


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file of tensors."""

    num_bytes: int
    crc32: int
    tensors: dict[str, TensorSpec]
    """By name, in order."""

    @property
    def facts(self) -> FileFacts:
        """What tells whether it is as it was written."""
        return FileFacts(self.num_bytes, self.crc32)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRecord:
    """What of a `CachedTokens` is no tensor."""

    first_layer: int
    is_padded: bool
    has_places: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a folder holds."""

    precision: Precision
    dtype: str
    """Of keys and values in memory, as safetensors writes it."""
    num_layers: int
    records: tuple[StoredRecord, ...]
    files: dict[str, StoredFile]
    fingerprint: dict[str, Any]
    versions: dict[str, Any]
    state: dict[str, Any]
    computed: tuple[tuple[int, float], ...] | None = None
    """Of each run of rows, its end and the query-key pairs that filled the cache; None: unknown."""

    @property
    def num_bytes(self) -> int:
        """Of all files of tensors."""
        return sum(file.num_bytes for file in self.files.values())

    def to_json(self) -> str:
        """As it stands in the file."""
        contents = asdict(self)
        whole = {"format": FORMAT, "number": NUMBER, "crc32": _crc_of(contents)}
        return json.dumps(whole | {"contents": contents}) + "\n"


def layer_file(index: int) -> str:
    """The name of the file of a layer."""
    return f"layer-{index:03d}.safetensors"


def layer_specs(shape: tuple[int, ...], dtype: str, precision: Precision) -> Specs:
    """The tensors of a layer's file.

    Args:
        shape: of keys and values, (B, S, H, D).
        dtype: of both in memory.
        precision: how they are stored.
    """
    if precision == "exact":
        return {name: TensorSpec(dtype, shape) for name in (KEYS, VALUES)}
    samples, rows, heads, channels = shape
    return {
        name + end: spec
        for name in (KEYS, VALUES)
        for end, spec in (
            (CHANNELS, TensorSpec("F32", (samples, heads, channels))),
            (ROWS, TensorSpec("F16", (samples, rows, heads))),
            ("", TensorSpec("I8", shape)),
        )
    }


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as JSON gives it back: tuples are lists.

    Raises:
        ValueError: it is no JSON object of finite numbers.
        TypeError: it holds what JSON does not know.
    """
    return dict(json.loads(json.dumps(dict(value), allow_nan=False)))


def named_folder(folder: str | Path) -> Path:
    """A folder by its name; UsageError for what cannot be the name of one."""
    try:
        path = Path(folder)
        path.resolve().exists()
    except (OSError, TypeError, ValueError) as error:
        shown = repr(folder)[:_MOST_SHOWN]
        raise UsageError(f"{shown} names no folder ({one_line(error)}): name another") from error
    return path


def check_replaceable(folder: Path) -> None:
    """Refuse to write where something else is than nothing, an empty folder, or a stored cache.

    Raises:
        UsageError: says what is there.
    """
    if not folder.exists():
        return
    found = "a file"
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in names if not _OURS.fullmatch(name)]
        if not names:
            return
        if not foreign and _names_format(folder / CONTENTS):
            return
        found = f"a folder with {foreign[0] if foreign else f'no {CONTENTS} of a stored cache'}"
    raise UsageError(f"{folder} is {found}, and would be replaced: name another folder")


def _names_format(path: Path) -> bool:
    try:
        return read_json_object(path).get("format") == FORMAT
    except UsageError:
        return False


def read_contents(folder: Path) -> Contents:
    """What a folder holds, by its own word.

    Raises:
        UsageError: there is none, it is no stored cache, one of a newer format, or damaged.
    """
    path = folder / CONTENTS
    if not path.exists():
        old = replaced_by(folder)
        moved = f"it may be {old.name} beside it: rename that" if old.exists() else "name another"
        raise UsageError(f"{folder} has no {CONTENTS}: want the folder of a stored cache; {moved}")
    stated = read_json_object(path, remedy=_REMEDY)
    if stated.get("format") != FORMAT:
        raise UsageError(
            f"{path} is not of a stored cache (format {str(stated.get('format'))[:40]!r}): want "
            f"{FORMAT!r}; name another folder"
        )
    number = stated.get("number")
    if type(number) is int and number > NUMBER:
        raise UsageError(
            f"{folder} is of format {number}, which a newer videonsa wrote: want at most {NUMBER}; "
            "update videonsa"
        )
    try:
        contents = stated["contents"]
        if type(number) is not int or number != NUMBER or stated["crc32"] != _crc_of(contents):
            raise ValueError("its checksum differs")
        found: Contents = typed(Contents, contents)
        _check_consistent(found)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({one_line(error)}): {_REMEDY}") from error
    return found


def _crc_of(contents: Any) -> int:
    return zlib.crc32(json.dumps(contents, sort_keys=True).encode())


def _check_consistent(contents: Contents) -> None:
    wanted = {TOKENS, ADDED, *map(layer_file, range(contents.num_layers))}
    if set(contents.files) != wanted or contents.dtype not in DTYPES:
        raise ValueError("it lists other files")
    for name, file in contents.files.items():
        for spec in file.tensors.values():
            if spec.dtype not in DTYPES or min(spec.shape, default=0) < 0:
                raise ValueError(f"it lists a tensor of {spec.dtype[:10]} {spec.shape} in {name}")
        if file.num_bytes != bytes_of_file(file.tensors):
            raise ValueError(f"its tensors of {name} are not {file.num_bytes} bytes")
    for index in range(contents.num_layers):
        tensors = contents.files[layer_file(index)].tensors
        shape = tensors[KEYS].shape
        if tensors != layer_specs(shape, contents.dtype, contents.precision) or len(shape) != 4:
            raise ValueError(f"it lists other tensors of layer {index}")
    tokens = contents.files[TOKENS].tensors
    if {name: (spec.dtype, len(spec.shape)) for name, spec in tokens.items()} != {
        f"{number}.{name}": kind
        for number, record in enumerate(contents.records)
        for name, kind in RECORD.items()
        if record.has_places or name != PLACES
    }:
        raise ValueError("it lists other tensors of tokens")
    ends = [end for end, _ in contents.computed or ()]
    if ends != sorted(set(ends)) or min(ends, default=1) < 1:
        raise ValueError(f"it counts pairs of rows up to {str(ends)[:40]}")


def check_files(folder: Path, contents: Contents) -> None:
    """Refuse a folder that lacks files, or has cut ones.

    Raises:
        UsageError: names the first.
    """
    for name, file in contents.files.items():
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{folder} lacks {name}: {_REMEDY}")
        if (size := path.stat().st_size) != file.num_bytes:
            raise UsageError(
                f"{path} has {size} bytes, and {file.num_bytes} were written: {_REMEDY}"
            )


def damaged(path: Path, reason: str) -> UsageError:
    """What to raise where a file is not as it was written."""
    return UsageError(f"{path} is damaged ({reason}): {_REMEDY}")


def check_same(folder: Path, contents: Contents, now: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse another model than the cache was filled by; notes where only versions differ.

    Raises:
        UsageError: says what differs.
    """
    if differ := list(differences(contents.fingerprint, now)):
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise UsageError(
            f"{folder} was saved with {'; '.join(differ[:4])}{more}: load it with the model and "
            "the options that it was saved with"
        )
    other = [
        f"{name} {contents.versions.get(name)} (now {version})"
        for name, version in versions().items()
        if contents.versions.get(name) != version
    ]
    return (f"{folder} was saved with {', '.join(other)}",) if other else ()
