"""Files of the package's own: parquet written atomically, and JSON lines that are appended."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from videonsa.disk import partial_file
from videonsa.errors import UsageError, missing_package
from videonsa.parsing import check_regular, one_line, parse_json

MOST_LINE_BYTES = 2**26
"""Of a line of JSON."""
Value = TypeVar("Value")


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
    """Write a parquet file atomically: none is left if writing fails.

    Args:
        path: of the file.
        schema: of pyarrow.
        rows_a_group: rows that a reader decodes together.
        metadata: what the file says about itself, asked for at the end.

    """
    _, parquet = pyarrow()
    with (
        partial_file(path) as partial,
        partial.open("wb") as stream,  # a path would be taken for an address where it looks so
        parquet.ParquetWriter(stream, schema, compression="zstd", version="2.6") as file,
    ):
        rows = ParquetRows(file, schema=schema, rows_a_group=rows_a_group)
        yield rows
        rows.flush()
        file.add_key_value_metadata(metadata())


@contextmanager
def reading(path: Path, what: str, *, remedy: str) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into one UsageError.

    Args:
        path: of the file.
        what: it should be.
        remedy: what the reader should do; the end of the message.

    Raises:
        UsageError: as said.

    """
    arrow, _ = pyarrow()
    damaged = (OSError, ValueError, LookupError, TypeError, AttributeError, arrow.ArrowException)
    try:
        yield
    except damaged as error:
        reason = one_line(error)
        raise UsageError(f"{path}: not {what} that can be read ({reason}): {remedy}") from error


def json_lines(
    path: Path, *, read: Callable[[int, Any], Value], remedy: str
) -> Iterator[tuple[Value, int]]:
    """The value of each line, and the byte where it ends. A cut-off last line is left out.

    Args:
        path: of the file.
        read: makes something of the number of a line, from 1 on, and its value; raises ValueError,
            TypeError or KeyError of a wrong one.
        remedy: what the reader should do; the end of the message.

    Raises:
        UsageError: it is no regular file, cannot be read, or a line is not what is wanted.

    """
    number, end = 1, 0
    try:
        check_regular(path)
        with path.open("rb") as file:
            while (text := file.readline(MOST_LINE_BYTES)).endswith(b"\n"):
                end += len(text)
                yield read(number, parse_json(text, allow_nan=False)), end
                number += 1
            if len(text) == MOST_LINE_BYTES:
                raise ValueError(f"over {MOST_LINE_BYTES} bytes")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({one_line(error)}): {remedy}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}, line {number}: {one_line(error)}: {remedy}") from error


def open_for_lines(path: Path, *, after: int, remedy: str) -> BinaryIO:
    """Open a file to append lines; everything after the first `after` bytes is removed.

    Raises:
        UsageError: something else than a file is there.
        OSError: it cannot be written.

    """
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{path} is not a regular file: {remedy}")
    file = path.open("ab")
    file.truncate(after)
    return file
