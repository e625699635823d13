"""Files that are whole or absent; parquet with the same bytes for the same rows."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from videonsa.errors import missing_package


def pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        UsageError: they are not installed.

    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_package("pyarrow", extra="data") from error
    return pyarrow, parquet


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


class ParquetWriter:
    """Writes rows in groups; the file appears when the writer is left without an error."""

    def __init__(
        self,
        path: Path,
        *,
        schema: Any,
        rows_a_group: int,
        metadata: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """Begin the file beside its place.

        Args:
            path: of the file.
            schema: of pyarrow.
            rows_a_group: rows that a reader decodes together.
            metadata: what the file says about itself, asked for at the end.

        """
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._schema = schema
        self._rows_a_group = rows_a_group
        self._metadata = metadata
        self._rows: list[dict[str, Any]] = []
        self._arrow, parquet = pyarrow()
        self._writer = parquet.ParquetWriter(
            self._partial, schema, compression="zstd", version="2.6"
        )

    def write(self, row: dict[str, Any]) -> None:
        """Add a row: a value for each name of the schema."""
        self._rows.append(row)
        if len(self._rows) == self._rows_a_group:
            self._write_group()

    def _write_group(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
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
                self._writer.add_key_value_metadata(self._metadata())
            self._writer.close()
            if error is None:
                self._partial.replace(self._path)
        finally:
            with suppress(OSError):
                self._partial.unlink()
