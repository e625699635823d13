"""Safetensors files that are written and read piece by piece, with a checksum on the way.

A piece on a GPU goes through a page-locked buffer of the thread at work: several threads, each with
a file of its own, copy, sum up and write beside one another, and nothing is in memory twice.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import FileIO
from types import MappingProxyType
from typing import NamedTuple, Self

import torch
from torch import Tensor

PIECE, PIECE_ON_CPU = 2**24, 2**21
"""Bytes that are copied, summed up and written at a time; on a CPU, as its cache holds them."""
_NAMES = MappingProxyType(
    {
        torch.bool: "BOOL",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.int32: "I32",
        torch.int64: "I64",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.float64: "F64",
    }
)
DTYPES = MappingProxyType({name: dtype for dtype, name in _NAMES.items()})
"""What can be stored, by its name in safetensors."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values."""

    dtype: str
    """As safetensors writes it: "BF16", "F32", ..."""
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Of a tensor.

        Raises:
            ValueError: of a dtype that is not stored.
        """
        if tensor.dtype not in _NAMES:
            raise ValueError(
                f"a tensor of {tensor.dtype}: want one of {', '.join(map(str, _NAMES))}"
            )
        return cls(_NAMES[tensor.dtype], tuple(tensor.shape))

    @property
    def num_bytes(self) -> int:
        """Of all values."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class FileFacts(NamedTuple):
    """What tells whether a file is as it was written."""

    num_bytes: int
    crc32: int


class DamagedError(Exception):
    """A file that is not as it was written; the message says in what."""


Specs = Mapping[str, TensorSpec]
"""The tensors of a file by their names, in the order of their values."""


def header_of(specs: Specs) -> bytes:
    """The first bytes of a file."""
    entries, start = {}, 0
    for name, spec in specs.items():
        end = start + spec.num_bytes
        entries[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of_file(specs: Specs) -> int:
    """How long the file will be."""
    return len(header_of(specs)) + sum(spec.num_bytes for spec in specs.values())


def places_of(tensor: Tensor) -> Iterator[tuple[int, slice]]:
    """The rows of `[B, S, ...]` in order: a sample, and some of its rows, a piece in size."""
    samples, num_rows = tensor.shape[:2]
    most = PIECE_ON_CPU if tensor.device.type == "cpu" else PIECE
    step = max(most // max(math.prod(tensor.shape[2:]) * tensor.element_size(), 1), 1)
    for sample in range(samples):
        for start in range(0, num_rows, step):
            yield sample, slice(start, min(start + step, num_rows))


def pieces_of(tensor: Tensor) -> Iterator[Tensor]:
    """The rows of `[B, S, ...]` in order, contiguous `[n, ...]` each."""
    for place in places_of(tensor):
        yield tensor[place].contiguous()


def settle(devices: Iterable[torch.device]) -> None:
    """Wait for what runs on GPUs: threads will work there beside it."""
    for device in {device for device in devices if device.type == "cuda"}:
        torch.cuda.synchronize(device)


class Staging:
    """Host memory of one file at work, through which the bytes of a device go.

    What runs on the device must be done when it is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
            self._stream = torch.cuda.Stream(device)

    def stream(self) -> AbstractContextManager[object]:
        """Where this thread works on the device, beside what else runs there."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def to_host(self, piece: Tensor) -> Iterator[memoryview]:
        """The bytes of a contiguous piece; each part holds until the next is asked for."""
        for part in _bytes_of(piece).split(PIECE):
            if part.device.type == "cpu":
                yield _view(part)
            else:
                host = self._host(len(part))
                host.copy_(part, non_blocking=self._is_ours(part))
                self._wait()
                yield _view(host)

    def from_host(self, piece: Tensor) -> Iterator[memoryview]:
        """Bytes to fill, which then are those of a contiguous piece."""
        for part in _bytes_of(piece).split(PIECE):
            if part.device.type == "cpu":
                yield _view(part)
            else:
                host = self._host(len(part))
                yield _view(host)
                part.copy_(host, non_blocking=self._is_ours(part))
                self._wait()

    def _host(self, size: int) -> Tensor:
        if self._buffer is None:
            self._buffer = torch.empty(PIECE, dtype=torch.uint8)
        return self._buffer[:size]

    def _is_ours(self, part: Tensor) -> bool:
        """Whether our stream's end tells that a copy is done."""
        return self._stream is not None and part.device == self._device

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _bytes_of(piece: Tensor) -> Tensor:
    return piece.detach().view(-1).view(torch.uint8)


def _view(host: Tensor) -> memoryview:
    view: memoryview = host.numpy().data
    return view


class TensorWriter:
    """Writes a file of known tensors, all their pieces one after the other."""

    def __init__(
        self, file: FileIO, specs: Specs, staging: Staging, done: Callable[[int], None]
    ) -> None:
        """Begin.

        Args:
            file: to write to, unbuffered.
            specs: what will come.
            staging: of this file.
            done: told of bytes that were written.
        """
        self._file, self._staging, self._done = file, staging, done
        self._size = self._crc = 0
        self._put(memoryview(header_of(specs)))

    def write(self, piece: Tensor) -> None:
        """The next contiguous piece, on any device."""
        for content in self._staging.to_host(piece):
            self._put(content)

    def finish(self) -> FileFacts:
        """Bring the file onto the disk."""
        os.fsync(self._file.fileno())
        return FileFacts(self._size, self._crc)

    def _put(self, content: memoryview) -> None:
        self._crc = zlib.crc32(content, self._crc)
        self._size += len(content)
        rest = content
        while rest:
            rest = rest[self._file.write(rest) :]
        self._done(len(content))


class TensorReader:
    """Reads a file of known tensors, all their pieces one after the other."""

    def __init__(
        self, file: FileIO, specs: Specs, staging: Staging, done: Callable[[int], None]
    ) -> None:
        """Begin.

        Args:
            file: to read from, unbuffered.
            specs: what is in it.
            staging: of this file.
            done: told of bytes that were read.

        Raises:
            DamagedError: other tensors are in it.
        """
        self._file, self._staging, self._done = file, staging, done
        self._size = self._crc = 0
        wanted = header_of(specs)
        found = bytearray(len(wanted))
        self._get(memoryview(found))
        if found != wanted:
            raise DamagedError("it holds other tensors")

    def read_into(self, piece: Tensor) -> None:
        """The next values, into a contiguous piece on any device.

        Raises:
            DamagedError: the file ends before.
        """
        for place in self._staging.from_host(piece):
            self._get(place)

    def finish(self) -> FileFacts:
        """What was read."""
        return FileFacts(self._size, self._crc)

    def _get(self, place: memoryview) -> None:
        rest = place
        while rest:
            count = self._file.readinto(rest)
            if not count:
                raise DamagedError("it ends too early")
            rest = rest[count:]
        self._crc = zlib.crc32(place, self._crc)
        self._size += len(place)
        self._done(len(place))
