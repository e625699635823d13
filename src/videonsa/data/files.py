"""Parquet files that are whole or absent, with the same bytes for the same rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videonsa.disk import partial_file
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


class ParquetRows:
    """An open parquet file that takes rows and writes them in groups."""

    def __init__(self, file: Any, *, schema: Any, rows_a_group: int) -> None:
        self._file = file
        self._schema = schema
        self._rows_a_group = rows_a_group
        self._rows: list[dict[str, Any]] = []
        self._arrow, _ = pyarrow()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row: a value for each name of the schema."""
        self._rows.append(row)
        if len(self._rows) == self._rows_a_group:
            self.flush()

    def flush(self) -> None:
        """Write the rows of the group that is begun."""
        if self._rows:
            self._file.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


@contextmanager
def parquet_writer(
    path: Path,
    *,
    schema: Any,
    rows_a_group: int,
    metadata: Callable[[], dict[str, str]] = dict,
) -> Iterator[ParquetRows]:
    """Write a parquet file, whole or not at all.

    Args:
        path: of the file.
        schema: of pyarrow.
        rows_a_group: rows that a reader decodes together.
        metadata: what the file says about itself, asked for at the end.

    """
    _, parquet = pyarrow()
    with (
        partial_file(path) as partial,
        parquet.ParquetWriter(partial, schema, compression="zstd", version="2.6") as file,
    ):
        rows = ParquetRows(file, schema=schema, rows_a_group=rows_a_group)
        yield rows
        rows.flush()
        file.add_key_value_metadata(metadata())
