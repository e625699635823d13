"""JSON files of any size, row by row: an array of rows, or one row per line."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from videonsa.errors import UsageError
from videonsa.parsing import check_regular, one_line, parse_json

CHUNK_BYTES = 1 << 20
_SPACE = " \t\r\n"
_MORE_OF_A_NUMBER = {"", *"0123456789.eE+-"}
_LONGEST_WORD = len("-Infinity") + 1
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is not JSON."""

    problem: str


def read_rows(path: Path) -> Iterator[Any | BadRow]:
    """The rows of a file, in order; a chunk and a row of it are in memory at a time.

    An array of JSON is read value by value, any other file line by line; empty lines are left out.

    Raises:
        UsageError: the file cannot be read, or an array breaks off or holds what is not JSON: the
            rows behind that cannot be found.

    """
    try:
        if path.exists():
            check_regular(path)
        with path.open("rb") as file:
            if _first_byte(file) == b"[":
                yield from _array_rows(file, path)
            else:
                yield from _line_rows(file)
    except OSError as error:
        reason = one_line(error).lower()
        raise UsageError(f"{path}: cannot be read: {reason}: name a file you may read") from error


def _first_byte(file: BinaryIO) -> bytes:
    """The first byte that is not white, after a byte order mark; the file is put back before it."""
    file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
    while (byte := file.read(1)).isspace():
        pass
    file.seek(-len(byte), 1)
    return byte


def _line_rows(file: BinaryIO) -> Iterator[Any | BadRow]:
    for line in file:
        if line.isspace():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            row = BadRow(f"a line is not JSON ({error})")
        yield row


class _Text:
    """The text of a file from the place that was read up to, as much as was asked for."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text = ""
        self.at = 0
        self.ended = False

    def more(self) -> None:
        """Read on; what was consumed is dropped."""
        left = len(self.text) - self.at
        # Doubling, so that a long row is parsed a few times only.
        data = self._file.read(max(CHUNK_BYTES, left))
        self.ended = not data
        try:
            self.text = self.text[self.at :] + self._decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self.path}: not UTF-8 near byte {self._file.tell()} ({error.reason}): "
                "want JSON in UTF-8; download it again or convert it"
            ) from error
        self.at = 0

    def next_char(self) -> str:
        """The next character that is not white, which is not read yet; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()


def _array_rows(file: BinaryIO, path: Path) -> Iterator[Any]:
    text = _Text(file, path)
    text.next_char()
    text.at += 1
    num_rows = 0
    if text.next_char() == "]":
        return
    while True:
        yield _value(text, num_rows)
        num_rows += 1
        follows = text.next_char()
        if follows == "]":
            return
        if follows != ",":
            raise _broken(text, num_rows, f"{follows!r} follows a row" if follows else "it ends")
        text.at += 1


def _value(text: _Text, num_rows: int) -> Any:
    text.next_char()
    while True:
        try:
            value, end = _DECODER.raw_decode(text.text, text.at)
            # A number may continue beyond what was read so far.
            if text.ended or text.text[end : end + 1] not in _MORE_OF_A_NUMBER:
                text.at = end
                return value
        except RecursionError:
            raise _broken(text, num_rows, "nested too deep") from None
        except json.JSONDecodeError as error:
            if text.ended or not _may_be_cut(error):
                ends = text.ended and text.at == len(text.text)
                raise _broken(text, num_rows, "it ends" if ends else str(error)) from None
        except ValueError as error:  # a number of too many digits
            raise _broken(text, num_rows, one_line(error)) from None
        text.more()


def _may_be_cut(error: json.JSONDecodeError) -> bool:
    """Whether the value may become valid once more is read; if not, reading on is useless."""
    return error.msg.startswith("Unterminated string") or error.pos > len(error.doc) - _LONGEST_WORD


def _broken(text: _Text, num_rows: int, problem: str) -> UsageError:
    return UsageError(
        f"{text.path}: its array of JSON cannot be read behind row {num_rows} ({problem}): want a "
        "whole file; it was probably cut off, so download it again"
    )
