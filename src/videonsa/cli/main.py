"""`videonsa COMMAND ...`: the parser of all commands, and what an error looks like.

Exit status: 0 done; 1 a defect of videonsa; 2 something the user can mend, told in one line on
stderr; 130 interrupted; 141 the reader of stdout went away.
"""

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

import videonsa
from videonsa.cli import ask, bench, convert, data, demo, doctor, evaluate, plan, train
from videonsa.cli.common import LineParser, report
from videonsa.errors import VideoNSAError

EXIT_DEFECT = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


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
        return _failed(error, debug=args.debug, status=EXIT_DEFECT)


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
