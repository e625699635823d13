"""One line on stderr while GPU kernels compile, which a machine does once."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from videonsa.cli.common import report

if TYPE_CHECKING:
    from tqdm import tqdm

    from videonsa.ops.compilation import Compiled


class CompileLine:
    """Says how many kernels are compiled: on a terminal in one line that changes, else once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._said = False

    def __call__(self, compiled: "Compiled") -> None:
        """A kernel more is compiled."""
        text = line_of(compiled)
        if not self._stream.isatty():
            if not self._said:
                report(text)
        elif self._bar is None:
            from tqdm import tqdm

            # It finds a place of its own beside the bar of a video that is being read.
            self._bar = tqdm(bar_format="{desc}", desc=text, file=self._stream)
        else:
            self._bar.set_description_str(text)
        self._said = True

    def close(self) -> None:
        """Leave the line as it is, and go to the next."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def line_of(compiled: "Compiled") -> str:
    """The line."""
    return (
        f"compiling  GPU kernels for this machine, once: {compiled.count} so far, "
        f"{compiled.seconds:.0f} s"
    )


@contextmanager
def compile_line() -> Iterator[None]:
    """Tell of the kernels that are compiled inside; nothing else should be written meanwhile."""
    from videonsa.ops.compilation import watch_compilation

    line = CompileLine(sys.stderr)
    try:
        with watch_compilation(line):
            yield
    finally:
        line.close()


def told_to_first(pieces: Iterator[str]) -> Iterator[str]:
    """The same pieces; kernels are told of until the first is there."""
    with compile_line():
        first = next(pieces, None)
    if first is not None:
        yield first
        yield from pieces
