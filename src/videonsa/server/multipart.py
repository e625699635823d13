"""A form with one file, as it arrives: the file is handed on piece by piece."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from videonsa.server.errors import RefusedRequest

MOST_PARTS = 8
MOST_FIELD = 1024
"""Bytes of a field that is no file."""
GATHERED = 2**20
"""Bytes that are written together, by another thread than that of the event loop."""


class FormWithFile:
    """What a form holds; its file goes to `write`."""

    def __init__(self, content_type: str, write: Callable[[bytes], None]) -> None:
        """Begin to read.

        Args:
            content_type: of the request.
            write: is given the file; what it raises ends the reading.

        Raises:
            RefusedRequest: 415, no such form.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise RefusedRequest(
                415, "an upload came as something else: want multipart/form-data with a file"
            )
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._write = write
        self._num_parts = 0
        self._name, self._value, self._in_file = "", bytearray(), False
        self._header, self._header_value = bytearray(), bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda *of: self._header.extend(_piece(*of)),
                "on_header_value": lambda *of: self._header_value.extend(_piece(*of)),
                "on_header_end": self._end_header,
                "on_part_data": lambda *of: self._take(_piece(*of)),
                "on_part_end": self._end_part,
            },
        )
        self._ended = False

    async def read(self, pieces: AsyncIterator[bytes]) -> None:
        """Read a body to its end.

        Raises:
            RefusedRequest: 400, no such form, or what `write` refuses.
        """
        gathered = bytearray()
        async for piece in pieces:
            gathered += piece
            if len(gathered) >= GATHERED:
                await asyncio.to_thread(self._feed, bytes(gathered))
                gathered.clear()
        await asyncio.to_thread(self._feed, bytes(gathered))
        try:
            self._parser.finalize()
        except MultipartParseError as error:
            raise _broken(str(error)) from error
        if self.filename is None or not self._ended:
            raise _broken("it holds no whole part with the name file and a filename")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise _broken(str(error)) from error

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MOST_PARTS:
            raise _broken(f"it has more than {MOST_PARTS} parts")
        self._name, self._in_file = "", False
        self._value.clear()

    def _end_header(self) -> None:
        name, value = bytes(self._header).lower(), bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()
        if name != b"content-disposition":
            return
        _, options = parse_options_header(value)
        self._name = _text(options.get(b"name", b""))
        if b"filename" not in options:
            return
        if self._name != "file" or self.filename is not None:
            raise _broken("want one part with a filename, of the name file")
        self.filename, self._in_file, self._ended = _text(options[b"filename"]), True, False

    def _take(self, data: bytes) -> None:
        if self._in_file:
            self._write(data)
            return
        self._value += data
        if len(self._value) > MOST_FIELD:
            raise _broken(f"a field has more than {MOST_FIELD} bytes")

    def _end_part(self) -> None:
        if self._in_file:
            self._ended = True
        else:
            self.fields[self._name] = _text(bytes(self._value))


def _piece(data: bytes, start: int, end: int, *_: Any) -> bytes:
    return data[start:end]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _broken(why: str) -> RefusedRequest:
    return RefusedRequest(
        400, f"the form of an upload cannot be read: {why}: want the fields file and purpose"
    )
