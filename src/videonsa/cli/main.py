"""`videonsa COMMAND ...`: the parser of all commands, and what an error looks like.

Exit status: 0 done; 1 a defect of videonsa; 2 something the user can mend, told in one line on
stderr; 130 interrupted; 141 stdout takes no more: its reader went away, its disk is full, or it
is closed.
"""

import errno
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

import videonsa
from videonsa.cli import (
    analyze,
    ask,
    chat,
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    inspect,
    methods,
    plan,
    serve,
    train,
    watch,
)
from videonsa.cli.bench import command as bench
from videonsa.cli.common import LineParser, OutputError, open_closed_streams, report, silence
from videonsa.cli.data import command as data
from videonsa.errors import VideoNSAError
from videonsa.parsing import one_line

EXIT_DEFECT = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_NO_OUTPUT = 141
"""As the shell says of a process that a broken pipe ended."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 1000
"""Characters of an error, which may name a long path or a page of values."""


def build_parser() -> LineParser:
    """The parser of every command; each sub-command sets `run`, a function of its arguments."""
    parser = LineParser(
        prog="videonsa",
        description="Ask long videos questions with Native Sparse Attention.",
        epilog="'videonsa COMMAND --help' shows the options and examples of a command.",
    )
    parser.add_argument("--version", action="version", version=f"videonsa {videonsa.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    answering = (demo, ask, inspect, chat, watch, serve, compare, plan, methods)
    for command in (*answering, convert, data, doctor, bench, evaluate, analyze, train):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = Namespace(debug=False)
    open_closed_streams()
    try:
        build_parser().parse_args(argv, namespace=args)
        status: int = args.run(args)
        return status
    except OutputError:
        silence(sys.stdout)
        return EXIT_NO_OUTPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        return _failed(error, debug=args.debug)


def _failed(error: Exception, *, debug: bool) -> int:
    """Tell the error in one line, after the traceback where that was asked for."""
    if debug:
        report("".join(traceback.format_exception(error)).rstrip())
    told = str(error) if isinstance(error, VideoNSAError) else _refused(error)
    status = EXIT_DEFECT if told is None else EXIT_USER
    message = " ".join((told or _defect(error)).split())
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    report(f"videonsa: error: {message}")
    return status


def _refused(error: Exception) -> str | None:
    """What the system would not do: a full disk, no permission, no memory. None: it is no such."""
    of_torch = ("allocate memory", "out of memory")  # which raises RuntimeErrors
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in of_torch)
    ):
        return f"out of memory ({one_line(error)}): ask for less, or use a larger machine"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    place = f"{error.filename}: " if error.filename else ""
    remedy = "free some, or write to another disk"
    if error.errno not in _NO_ROOM:
        remedy = "name a file or a folder that can be used, or change its rights"
    return f"{place}{one_line(error).lower()}: {remedy}"


def _defect(error: Exception) -> str:
    return (
        f"unexpected {type(error).__name__}: {str(error) or 'no message'}: "
        "this is a defect of videonsa; please report it with the output of --debug"
    )
