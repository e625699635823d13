"""`videonsa COMMAND ...`: the parser of all commands, and what an error looks like.

Exit status: 0 done; 1 a defect of videonsa; 2 something the user can mend, told in one line on
stderr; 130 interrupted; 141 the reader of stdout went away.
"""

import errno
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

import videonsa
from videonsa.cli import ask, bench, convert, data, demo, doctor, evaluate, plan, train
from videonsa.cli.common import LineParser, report
from videonsa.errors import UsageError, VideoNSAError
from videonsa.parsing import one_line

EXIT_DEFECT = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_parser() -> LineParser:
    """The parser of every command; each sub-command sets `run`, a function of its arguments."""
    parser = LineParser(
        prog="videonsa",
        description="Ask long videos questions with Native Sparse Attention.",
        epilog="'videonsa COMMAND --help' shows the options and examples of a command.",
    )
    parser.add_argument("--version", action="version", version=f"videonsa {videonsa.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, ask, plan, convert, data, doctor, bench, evaluate, train):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = Namespace(debug=False)
    try:
        build_parser().parse_args(argv, namespace=args)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except VideoNSAError as error:
        return _failed(error, debug=args.debug, status=EXIT_USER)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        told = _refused(error) or error
        status = EXIT_DEFECT if told is error else EXIT_USER
        return _failed(told, debug=args.debug, status=status)


def _refused(error: Exception) -> VideoNSAError | None:
    """What the system would not do (a full disk, no permission), as an error of the user."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    place = f"{error.filename}: " if error.filename else ""
    remedy = "free some, or write to another disk"
    if error.errno not in _NO_ROOM:
        remedy = "name a file or a folder that can be used, or change its rights"
    told = UsageError(f"{place}{one_line(error).lower()}: {remedy}")
    return told.with_traceback(error.__traceback__)


def _failed(error: Exception, *, debug: bool, status: int) -> int:
    """Tell the error in one line, after the traceback where that was asked for."""
    if debug:
        traceback.print_exception(error)
    message = " ".join(str(error).split())
    if status == EXIT_DEFECT:
        message = (
            f"unexpected {type(error).__name__}: {message or 'no message'}: "
            "this is a defect of videonsa; please report it with the output of --debug"
        )
    report(f"videonsa: error: {message}")
    return status


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of complaining."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
