"""The manifest: the records that are kept, with what sampling makes of their videos, in parquet.

Equal rows and options give equal bytes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from videonsa.data.files import parquet_writer, pyarrow, reading
from videonsa.data.records import Record
from videonsa.errors import UsageError
from videonsa.parsing import check_regular, parse_json, typed
from videonsa.video.sampling import SamplingSpec

MANIFEST = "manifest.parquet"
SCHEMA_VERSION = 2
ROWS_A_GROUP = 256
"""Rows that are read together: few, because training reads in random order."""


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
    vision_begin: int
    """Place of the first vision token; -1 without any."""
    label_tokens: int
    """Tokens that have a label where all answers count."""

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
        """Read what `to_json` wrote.

        Raises:
            ValueError: it did not write this, or another version did.
            TypeError: likewise.

        """
        content = parse_json(text)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if type(version) is int and version != SCHEMA_VERSION:
            raise ValueError(f"written with schema {version}, this version reads {SCHEMA_VERSION}")
        facts: Self = typed(cls, content)
        return facts


NUMBERS = (
    *("num_turns", "num_media", "num_frames", "duration"),
    *("video_tokens", "image_tokens", "text_tokens", "tokens"),
)
"""What the data hash covers of a row beside its record and media."""
COLUMNS = (*NUMBERS, "vision_begin", "label_tokens")
"""What `Manifest.column` gives; the last two follow from record and tokenizer."""
_KEPT_BYTES = 2**28
"""Of groups of rows that a manifest keeps in memory."""
_REMEDY = "want what 'videonsa data build' writes; build it again"
_FACTS, _DATA_HASH = "videonsa.facts", "videonsa.data_hash"


class ManifestWriter:
    """Writes rows to a manifest, which appears once the writer is left without an error."""

    def __init__(self, path: Path, *, facts: BuildFacts) -> None:
        self._facts = facts
        self._hash = hashlib.sha256()
        arrow, _ = pyarrow()
        self._file = parquet_writer(
            path, schema=_schema(arrow), rows_a_group=ROWS_A_GROUP, metadata=self._metadata
        )

    def write(self, row: ManifestRow) -> None:
        """Add a row."""
        record = row.record.to_json()
        media = [asdict(facts) for facts in row.media]
        numbers = {name: getattr(row, name) for name in COLUMNS}
        self._hash.update(_hashed(record, media, numbers))
        self._rows.write(
            {
                "id": row.record.id,
                "source": row.record.source,
                "record": record,
                "media": media,
                **numbers,
            }
        )

    def _metadata(self) -> dict[str, str]:
        return {_FACTS: self._facts.to_json(), _DATA_HASH: self.data_hash}

    @property
    def data_hash(self) -> str:
        """The hash of what was written so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        self._rows = self._file.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, traceback)


class Manifest:
    """The rows of a manifest, read as they are asked for. It may be sent to another process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        arrow, parquet = pyarrow()
        with self._reading():
            check_regular(path)
            self._file = parquet.ParquetFile(path)
            metadata = self._file.metadata.metadata or {}
            if _FACTS.encode() not in metadata:
                raise ValueError("it says nothing about a build")
            self.facts = BuildFacts.from_json(metadata[_FACTS.encode()].decode())
            self.data_hash: str = metadata[_DATA_HASH.encode()].decode()
            if not self._file.schema_arrow.equals(_schema(arrow)):
                raise ValueError("it has other columns")
        sizes = [
            self._file.metadata.row_group(index).num_rows
            for index in range(self._file.num_row_groups)
        ]
        self._ends: NDArray[np.int64] = np.cumsum(sizes, dtype=np.int64)
        # Groups of rows that were read; packs ask for rows all over the file, so a row is decoded
        # when it is asked for, and groups stay while there is room.
        self._groups: dict[int, Any] = {}

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self.path, "a manifest", remedy=_REMEDY)

    def __reduce__(self) -> tuple[type["Manifest"], tuple[Path]]:
        return Manifest, (self.path,)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> ManifestRow:
        """A row.

        Raises:
            IndexError: there is no such row.
            UsageError: the file is damaged.

        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        with self._reading():
            rows = self._group(number)
            (columns,) = rows.slice(rows.num_rows - int(self._ends[number]) + index, 1).to_pylist()
            return _row_of(columns)

    def _group(self, number: int) -> Any:
        """A group of rows; where there is no room for all, those read first are let go."""
        if number not in self._groups:
            group = self._file.read_row_group(number)
            room = _KEPT_BYTES - group.nbytes
            while self._groups and sum(kept.nbytes for kept in self._groups.values()) > room:
                del self._groups[next(iter(self._groups))]
            self._groups[number] = group
        return self._groups[number]

    def __iter__(self) -> Iterator[ManifestRow]:
        for columns in self._columns():
            with self._reading():
                row = _row_of(columns)
            yield row

    def _columns(self) -> Iterator[dict[str, Any]]:
        """Each row as the file has it, in order."""
        for number in range(self._file.num_row_groups):
            with self._reading():
                rows = self._file.read_row_group(number).to_pylist()
            yield from rows

    def records(self) -> Iterator[str]:
        """Each record as JSON, in order, without reading the rest."""
        for number in range(self._file.num_row_groups):
            with self._reading():
                texts = self._file.read_row_group(number, columns=["record"]).column("record")
            yield from texts.to_pylist()

    def column(self, name: str) -> NDArray[Any]:
        """One number of every row, such as `tokens` or `num_frames`, without reading the rest."""
        if name not in COLUMNS:
            raise UsageError(f"column {name!r}: want one of {', '.join(COLUMNS)}")
        with self._reading():
            column = self._file.read(columns=[name]).column(name)
            if column.null_count:
                raise ValueError(f"rows without {name}")
            values: NDArray[Any] = column.to_numpy()
        return values

    @property
    def sources(self) -> list[str]:
        """The source of every row, without reading the rest."""
        with self._reading():
            sources: list[str] = self._file.read(columns=["source"]).column("source").to_pylist()
        return sources

    def first_media(self, name: str) -> NDArray[Any]:
        """One number of the first video or image of every row, such as `height`; -1 without any."""
        with self._reading():
            media = self._file.read(columns=["media"]).column("media").combine_chunks()
            ends = media.offsets.to_numpy()
            given = media.values.field(name).to_numpy()
        first = np.full(len(self), -1, given.dtype)
        has_any = ends[1:] > ends[:-1]
        first[has_any] = given[ends[:-1][has_any]]
        return first

    def hash_rows(self) -> str:
        """The hash of the rows, computed again; equals `data_hash` in a sound manifest."""
        digest = hashlib.sha256()
        for columns in self._columns():
            digest.update(_hashed(columns["record"], columns["media"], columns))
        return digest.hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """Open a manifest: the file, or the folder of a build.

    Raises:
        UsageError: nothing there that can be read, or written with another schema.

    """
    path = Path(path)
    return Manifest(path / MANIFEST if path.is_dir() else path)


def _hashed(record: str, media: list[dict[str, Any]], numbers: dict[str, Any]) -> bytes:
    """What a row says, apart from when its files were written."""
    timeless = [{**facts, "mtime_ns": None} for facts in media]
    hashed = {name: numbers[name] for name in NUMBERS}
    return json.dumps([record, timeless, hashed], sort_keys=True).encode()


def _row_of(columns: dict[str, Any]) -> ManifestRow:
    return ManifestRow(
        record=Record.from_json(columns["record"]),
        media=tuple(MediaFacts(**facts) for facts in columns["media"]),
        **{name: columns[name] for name in COLUMNS},
    )


def _schema(arrow: Any) -> Any:
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    media = arrow.struct(
        [
            (name, types.get(kind, arrow.string()))
            for name, kind in MediaFacts.__annotations__.items()
        ]
    )
    return arrow.schema(
        [
            *((name, arrow.string()) for name in ("id", "source", "record")),
            ("media", arrow.list_(media)),
            *((name, types[ManifestRow.__annotations__[name]]) for name in COLUMNS),
        ]
    )
