"""The manifest: the records that are kept, with what sampling makes of their videos, in parquet.

Equal rows and options give equal bytes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from videonsa.data.records import Record
from videonsa.errors import UsageError, missing_package
from videonsa.video.sampling import SamplingSpec

MANIFEST = "manifest.parquet"
SCHEMA_VERSION = 1
ROWS_A_GROUP = 256
"""Rows that are read together: few, because training reads in any order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFacts:
    """One video or image of a record: what its file states, and what sampling makes of it."""

    kind: Literal["video", "image"]
    num_frames: int
    """Frames to sample; 1 of an image."""
    height: int
    """Pixels of a sampled frame."""
    width: int
    num_tokens: int
    """Merged tokens."""
    sampled_fps: float
    """Frames sampled a second."""
    duration: float
    """Seconds; 0 of an image."""
    source_frames: int
    """Frames in the file, as it states them."""
    source_height: int
    """Pixels of a frame in the file, as displayed."""
    source_width: int
    file_size: int
    """Bytes, of all frames together where they are files of their own; 0 without a file."""
    mtime_ns: int
    """When the file last changed, the latest of several; 0 without a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One kept record; its numbers are those after what was too long was cut."""

    record: Record
    media: tuple[MediaFacts, ...]
    """Of each of `record.media`."""
    num_turns: int
    """Turns of the record that are kept."""
    num_media: int
    """Videos and images that are kept: the first of the record's."""
    num_frames: int
    """Sampled frames of its videos together."""
    duration: float
    """Seconds of its videos together."""
    video_tokens: int
    image_tokens: int
    text_tokens: int
    """All others, those of the chat format included."""
    tokens: int
    """All together."""

    @property
    def vision_token_counts(self) -> tuple[int, ...]:
        """Merged tokens of each of `record.media`, as `conversation_tokens` takes them."""
        return tuple(facts.num_tokens for facts in self.media)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildFacts:
    """What a manifest says about itself."""

    sampling: SamplingSpec
    """How every video is sampled, unless its record says otherwise."""
    max_tokens: int | None
    """Most tokens of a sample; longer ones are cut at turns."""
    system: str
    """The system message of records that have none."""
    model: str
    """The model whose tokenizer counted."""
    tokenizer_hash: str
    options: Mapping[str, Any]
    """All options of the build, as they were given."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """One line of JSON, always the same for the same facts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        content = json.loads(text)
        return cls(**content | {"sampling": SamplingSpec(**content["sampling"])})


_COUNTS = (
    *("num_turns", "num_media", "num_frames"),
    *("video_tokens", "image_tokens", "text_tokens", "tokens"),
)


class ManifestWriter:
    """Writes rows to a manifest, which appears whole when the writer is left without an error."""

    def __init__(self, path: Path, *, facts: BuildFacts) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._facts = facts
        self._rows: list[ManifestRow] = []
        self._hash = hashlib.sha256()
        pa, parquet = _pyarrow()
        self._schema = _schema(pa)
        self._writer = parquet.ParquetWriter(
            self._partial, self._schema, compression="zstd", version="2.6"
        )

    def write(self, row: ManifestRow) -> None:
        """Add a row."""
        self._rows.append(row)
        self._hash.update(_hashed(row))
        if len(self._rows) == ROWS_A_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        pa, _ = _pyarrow()
        columns = [_column(name, self._rows) for name in self._schema.names]
        arrays = [
            pa.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._rows:
                    self._write_group()
                stated = {"facts": self._facts.to_json(), "data_hash": self._hash.hexdigest()}
                self._writer.add_key_value_metadata(
                    {f"videonsa.{key}": value for key, value in stated.items()}
                )
            self._writer.close()
            if error is None:
                self._partial.replace(self._path)
        finally:
            with suppress(OSError):
                self._partial.unlink()


class Manifest:
    """The rows of a manifest, read as they are asked for. It may be sent to another process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _, parquet = _pyarrow()
        try:
            self._file = parquet.ParquetFile(path)
            stated = self._file.schema_arrow.metadata or {}
            metadata = self._file.metadata.metadata or stated
            self.facts = BuildFacts.from_json(metadata[b"videonsa.facts"].decode())
            self.data_hash: str = metadata[b"videonsa.data_hash"].decode()
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UsageError(
                f"{path}: not a manifest that can be read ({error}): want what "
                "'videonsa data build' writes; build it again"
            ) from error
        if self.facts.schema_version != SCHEMA_VERSION:
            raise UsageError(
                f"{path}: written with schema {self.facts.schema_version}, this version reads "
                f"{SCHEMA_VERSION}: build it again"
            )
        sizes = [
            self._file.metadata.row_group(index).num_rows
            for index in range(self._file.num_row_groups)
        ]
        self._ends: NDArray[np.int64] = np.cumsum(sizes, dtype=np.int64)
        self._group: tuple[int, list[ManifestRow]] = (-1, [])

    def __reduce__(self) -> tuple[type["Manifest"], tuple[Path]]:
        return Manifest, (self.path,)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> ManifestRow:
        """A row.

        Raises:
            IndexError: there is no such row.

        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        if self._group[0] != number:
            self._group = number, _rows_of(self._file.read_row_group(number).to_pylist())
        return self._group[1][index - int(self._ends[number])]

    def __iter__(self) -> Iterator[ManifestRow]:
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> NDArray[Any]:
        """One number of every row, such as `tokens` or `num_frames`, without reading the rest."""
        if name not in (*_COUNTS, "duration"):
            raise UsageError(f"column {name!r}: want one of {', '.join((*_COUNTS, 'duration'))}")
        values: NDArray[Any] = self._file.read(columns=[name]).column(name).to_numpy()
        return values

    def hash_rows(self) -> str:
        """The hash of the rows, read anew; equal to `data_hash` in a sound manifest."""
        digest = hashlib.sha256()
        for row in self:
            digest.update(_hashed(row))
        return digest.hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """Open a manifest: the file, or the folder of a build.

    Raises:
        UsageError: nothing there that can be read, or written with another schema.

    """
    path = Path(path)
    return Manifest(path / MANIFEST if path.is_dir() else path)


def _hashed(row: ManifestRow) -> bytes:
    """What a row says, apart from when its files were written."""
    media = [{**asdict(facts), "mtime_ns": None} for facts in row.media]
    numbers = [row.duration, *(getattr(row, name) for name in _COUNTS)]
    return json.dumps([row.record.to_json(), media, numbers]).encode()


def _column(name: str, rows: list[ManifestRow]) -> list[Any]:
    if name in ("id", "source"):
        return [getattr(row.record, name) for row in rows]
    if name == "record":
        return [row.record.to_json() for row in rows]
    if name == "media":
        return [[asdict(facts) for facts in row.media] for row in rows]
    return [getattr(row, name) for row in rows]


def _rows_of(columns: list[dict[str, Any]]) -> list[ManifestRow]:
    return [
        ManifestRow(
            record=Record.from_json(row["record"]),
            media=tuple(MediaFacts(**facts) for facts in row["media"]),
            duration=row["duration"],
            **{name: row[name] for name in _COUNTS},
        )
        for row in columns
    ]


def _schema(pa: Any) -> Any:
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    media = pa.struct(
        [(name, types.get(kind, pa.string())) for name, kind in MediaFacts.__annotations__.items()]
    )
    return pa.schema(
        [
            ("id", pa.string()),
            ("source", pa.string()),
            ("record", pa.string()),
            ("media", pa.list_(media)),
            ("duration", pa.float64()),
            *((name, pa.int64()) for name in _COUNTS),
        ]
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_package("pyarrow", extra="data") from error
    return pyarrow, parquet
