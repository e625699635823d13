"""Lines that a person types at a prompt, or that come from a file or a pipe; and Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType

from videonsa.cli.common import emit, report

PROMPT = "> "


class Lines:
    """The lines of stdin; a person is prompted, with history and editing where there is readline.

    Ctrl-C throws away the line that is being typed. On an empty line it leaves when it is pressed
    twice, as Ctrl-D does at once.
    """

    def __init__(self) -> None:
        self.are_typed = sys.stdin is not None and sys.stdin.isatty()
        """Whether a person types them."""
        if self.are_typed:
            with suppress(ImportError):
                import readline  # noqa: F401, `input` then has history and editing
        elif isinstance(sys.stdin, TextIOWrapper):
            # A line that is no text is refused like a question that is none.
            sys.stdin.reconfigure(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        if not self.are_typed:
            yield from map(_without_end, sys.stdin or ())  # None: closed by who called
            return
        leaving = False
        while True:
            try:
                line = _prompted()
            except KeyboardInterrupt:
                emit("\n")
                if leaving and not _being_typed():
                    return
                leaving = not _being_typed()
                if leaving:
                    report("Ctrl-C again leaves, as Ctrl-D and /quit do")
                continue
            if line is None:
                emit("\n")
                return
            leaving = False
            yield line


def _prompted() -> str | None:
    """A line from a terminal; None at its end (Ctrl-D)."""
    if sys.stdout.isatty():
        with suppress(EOFError):
            return input(PROMPT)
        return None
    sys.stderr.write(PROMPT)  # stdout takes answers alone
    sys.stderr.flush()
    line = sys.stdin.readline()
    return _without_end(line) if line else None


def _without_end(line: str) -> str:
    return line.removesuffix("\n")


def _being_typed() -> str:
    """What stands on the line that was interrupted, as far as that is known."""
    readline = sys.modules.get("readline")
    return "" if readline is None else str(readline.get_line_buffer())


@contextmanager
def noted_interrupt(is_typed: bool) -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is noted, and what is yielded gives True; the second interrupts.

    So what should not stop just anywhere can stop where it asks. Without a person who types, every
    one interrupts.
    """
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True
        signal.signal(signal.SIGINT, before)

    if not is_typed or threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)
