"""What the commands share: options, output, and writing of files.

A command module has `add_parser(commands)`, which sets `run`, and `run(args) -> exit status`.
Only light imports stand at its top; torch and transformers are imported inside `run`.
"""

import json
import logging
import os
import re
import sys
import tempfile
import warnings
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeAlias

from videonsa.cli import values
from videonsa.disk import write_atomic
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from videonsa.inference.usage import Usage
    from videonsa.planning.plan import VideoPlan
    from videonsa.video.framelist import FrameList

DEFAULT_MODEL = "embedded"
MOST_TOKENS = 2**24
"""Of a video in a benchmark or an evaluation: 128 times the longest context there is."""


class LineParser(ArgumentParser):
    """An `ArgumentParser` whose errors are a `UsageError` of one line, not a page."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        message = re.sub("^argument (.*?): ", r"\1 ", message)
        raise UsageError(f"{message}: see '{self.prog} --help'")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help and version as everything else is printed."""
        emit(message)


Commands: TypeAlias = "_SubParsersAction[LineParser]"


def add_command(
    commands: Commands,
    name: str,
    *,
    run: Callable[[Namespace], int],
    summary: str,
    examples: tuple[str, ...],
    json_lines: bool = False,
) -> LineParser:
    """A sub-command with its examples and the options all of them have (--json, --debug).

    Args:
        commands: what it is added to.
        name: of the command.
        run: what it does; gives the exit status.
        summary: for --help.
        examples: whole command lines.
        json_lines: --json prints several objects, one a line.

    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
    )
    objects = "JSON objects on stdout, one a line" if json_lines else "one JSON object on stdout"
    parser.add_argument("--json", action="store_true", help=f"print {objects}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: LineParser) -> None:
    """--model, --base, --revision, --method and --dtype."""
    add_checkpoint_options(parser)
    add_method_option(parser)


def add_method_option(parser: LineParser) -> None:
    """--method."""
    parser.add_argument(
        "--method",
        metavar="NAME[:KEY=VALUE,...][+NAME...]",
        help="how tokens attend, such as dense or nsa:window_size=128; 'videonsa methods' lists "
        "all (default: as the weights were trained)",
    )


def add_checkpoint_options(parser: LineParser) -> None:
    """--model, --base, --revision and --dtype."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="ID_OR_PATH",
        help="a folder (of a checkpoint, a LoRA adapter or a training run), a Hugging Face id, or "
        "'embedded', the small demonstration model (default: %(default)s)",
    )
    parser.add_argument(
        "--base",
        metavar="ID_OR_PATH",
        help="base model of a LoRA adapter, instead of the one that it names",
    )
    add_revision_option(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of weights and KV cache (default: float32 on a CPU, else that of the weights)",
    )


def add_revision_option(parser: LineParser) -> None:
    """--revision."""
    parser.add_argument(
        "--revision",
        metavar="NAME",
        help="branch, tag or commit of a Hugging Face id (default: its main branch)",
    )


def add_fresh_gates_option(parser: LineParser) -> None:
    """--fresh-gates."""
    parser.add_argument(
        "--fresh-gates",
        action="store_true",
        help="allow --method nsa on weights without gates; all gates are 0.5 then, untrained",
    )


def add_weights_option(parser: LineParser) -> None:
    """--weights."""
    parser.add_argument(
        "--weights",
        choices=("full", "fp8", "int8", "int4"),
        default="full",
        help="quantise the decoder layers: int8, or int4 on a GPU, with torchao, to save memory; "
        "fp8, the vision tower too, also to be faster, on an RTX 40, an H100 or newer "
        "(default: %(default)s)",
    )


def add_frame_rate_option(parser: LineParser) -> None:
    """--frame-rate."""
    parser.add_argument(
        "--frame-rate",
        type=values.positive_number,
        metavar="N",
        help="images per second in a folder of images (default: 2)",
    )


def add_sampling_options(parser: LineParser) -> None:
    """Which frames, and how large; what is not given is the model's default."""
    parser.add_argument(
        "--sampling",
        choices=("exact", "keyframes"),
        help="exact: the frame on screen at each sampled time; keyframes: the keyframe nearest to "
        "it, which is faster to read (default: exact)",
    )
    parser.add_argument("--fps", type=float, metavar="N", help="frames to sample per second")
    parser.add_argument(
        "--num-frames",
        type=values.integer,
        metavar="N",
        help="sample this many frames, evenly spread, instead of --fps",
    )
    parser.add_argument(
        "--start", type=float, metavar="S", help="begin at this second (default: 0)"
    )
    parser.add_argument(
        "--end",
        type=float,
        metavar="S",
        help="end before this second (default: the end of the video)",
    )
    add_frame_rate_option(parser)
    parser.add_argument(
        "--max-frames", type=values.integer, metavar="N", help="sample at most this many frames"
    )
    parser.add_argument(
        "--max-pixels",
        type=values.integer,
        metavar="N",
        help="at most this many pixels per frame",
    )
    parser.add_argument(
        "--max-tokens",
        type=values.integer,
        metavar="N",
        help="at most this many video tokens: frames are made smaller, then fewer",
    )


def add_fit_options(parser: LineParser) -> None:
    """--fit and --memory."""
    parser.add_argument(
        "--fit",
        action="store_true",
        help="if the frames do not fit into context and memory, take fewer, then smaller ones, and "
        "say which",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="GPU memory to plan for, such as 24GB (default: what is free on the GPU)",
    )


def sampling_options(args: Namespace) -> dict[str, Any]:
    """The sampling options that were given, by the names of `SamplingSpec`."""
    names = ("fps", "num_frames", "start", "end", "max_frames", "max_pixels", "max_tokens")
    given = {name: getattr(args, name) for name in names} | {"mode": args.sampling}
    return {name: value for name, value in given.items() if value is not None}


def video_argument(args: Namespace) -> "str | FrameList":
    """VIDEO, with --frame-rate where it was given."""
    from videonsa.video.framelist import FrameList

    if args.frame_rate is None:
        return str(args.video)
    return FrameList(args.video, fps=args.frame_rate)


def kept_text(read: int, encoded: int) -> str:
    """Tokens that are read, and of how many where some are left out."""
    return str(read) if read == encoded else f"{read} of {encoded}"


def attention_text(of: "Usage | VideoPlan") -> str:
    """The attention of the vision rows and its budget in words."""
    name, budget, spec = of.attention, of.budget, of.spec or {}
    if name == "dense":
        return f"{name}: every row attends to all keys before it"
    behind = next((value for value in spec.values() if isinstance(value, dict)), None)
    told = [f"{key} {_option_text(value)}" for key, value in spec.items()]
    stated = ", ".join(told)
    if budget is None:
        return f"{name}: {stated}" if stated else name
    verdict = " (>= 1: dense-equivalent)" if budget.dense_equivalent else ""
    mask = (behind or spec).get("compressed_mask")
    title = name if mask is None else f"{name}, compressed mask {mask}"
    if behind is not None:  # it is the last of what is told
        title = f"{title} ({', '.join(told[:-1])})"
    return (
        f"{title}: K = {budget.keys} keys a row (of each video token, in its selected blocks and "
        f"window), budget 2K/(L-1) = {budget.gamma:.3g} of what dense attention to the prompt's L "
        f"tokens reads{verdict}"
    )


def _option_text(value: Any) -> str:
    from videonsa.models.methods.options import value_text

    if isinstance(value, dict):  # the method behind the first
        return str(value["name"])
    return value_text(value)


def parse_tokens(text: str, option: str) -> int:
    """A number of tokens such as 4096, 16k (of 1,024) or 1m.

    Raises:
        UsageError: another text; names the option.

    """
    number = text.strip().lower()
    scales = {"k": 1024, "m": 1024**2}
    scale = scales.get(number[-1:], 1)
    digits = number if scale == 1 else number[:-1]
    if not re.fullmatch("[0-9]{1,9}", digits) or not 0 < int(digits) * scale <= MOST_TOKENS:
        raise UsageError(
            f"{option} {text!r}: want positive numbers such as 4096 or 128k, at most 16m"
        )
    return int(digits) * scale


def parse_frame(text: str) -> tuple[int, int]:
    """Height and width in pixels of --frame HxW.

    Raises:
        UsageError: another text, or sides that are no multiples of 28.
    """
    found = re.fullmatch("([0-9]{1,4})x([0-9]{1,4})", text.lower())
    height, width = map(int, found.groups()) if found else (0, 0)
    if not height or not width or height % 28 or width % 28:
        raise UsageError(f"--frame {text!r}: want HEIGHTxWIDTH in multiples of 28, such as 224x224")
    return height, width


class OutputError(Exception):
    """Stdout takes no more: its reader went away, its disk is full, or it is closed."""


def report(line: str) -> None:
    """One line for the reader, on stderr. If nobody can read it, the work continues."""
    try:
        sys.stderr.write(_escaped(line + "\n", sys.stderr))
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def emit(text: str) -> None:
    """A piece of the result, on stdout, at once. What its encoding lacks is written as an escape.

    Raises:
        OutputError: it cannot be written.

    """
    try:
        sys.stdout.write(_escaped(text, sys.stdout))
        sys.stdout.flush()
    except OSError as error:
        raise OutputError from error


def _escaped(text: str, stream: TextIO) -> str:
    """The text, with escapes for what the encoding of a stream lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def silence(stream: TextIO) -> None:
    """Let what is left of a stream go nowhere, so that the interpreter's end is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_closed_streams() -> None:
    """Open the standard streams that are closed, or a result could get the number of one.

    What a library wrote to stderr would then stand in that file. Stdout cannot be written to
    still; what goes to stderr goes nowhere.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def emit_json(value: dict[str, Any]) -> None:
    """The result as one JSON object on stdout."""
    emit(json.dumps(value, indent=2, allow_nan=False) + "\n")


def emit_json_line(value: dict[str, Any]) -> None:
    """One of several results as a JSON object on a line of stdout."""
    emit(json.dumps(value, allow_nan=False) + "\n")


def prepare_folder(folder: Path) -> None:
    """Make a folder for results. `UsageError` if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    reason = (error.strerror or "not possible").lower()
    return UsageError(f"cannot write {path}: {reason}: name a folder that you may write to")


def write_output(path: Path, content: bytes) -> None:
    """Write a file atomically. `UsageError` if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def quiet_libraries(*, debug: bool) -> Iterator[None]:
    """Keep the warnings and logs of torch and transformers off stderr (not with --debug).

    What concerns the user is in the notes and warnings of an answer.
    """
    if debug:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
