"""What the commands below `videonsa bench` have in common."""

import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from videonsa.cli import values
from videonsa.cli.common import LineParser, emit, emit_json, report, write_output
from videonsa.env import num_processes
from videonsa.errors import UsageError
from videonsa.parsing import read_json_object

RESULTS = Path("benchmarks/results")


def add_model_options(parser: LineParser, name: str) -> None:
    """Options of the model, of what it is compared with, and of the result.

    Args:
        parser: of the command.
        name: of the result's file, without suffix.
    """
    parser.add_argument("--no-dense", action="store_true", help="leave out dense attention")
    parser.add_argument(
        "--one",
        type=values.path,
        metavar="FILE",
        help="the JSON of one process, to give the efficiency of several against it",
    )
    add_result_options(parser, name, several=f"; for N processes {name}_N.json")


def add_result_options(parser: LineParser, name: str, *, several: str = "") -> None:
    """Options of the model, the device and the result.

    Args:
        parser: of the command.
        name: of the result's file, without suffix.
        several: what that is called where several processes measure.
    """
    parser.add_argument(
        "--model", default="7B", metavar="SIZE", help="3B, 7B, 32B, 72B or tiny (default: 7B)"
    )
    parser.add_argument(
        "--out",
        type=values.path,
        metavar="FILE",
        help=f"the JSON to write (default: {RESULTS}/GPU/{name}.json where that folder exists, "
        f"else {name}.json{several})",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="a CPU takes the tiny model"
    )


def add_tokens_option(parser: LineParser, *, default: str, of: str) -> None:
    """--tokens.

    Args:
        parser: of the command.
        default: of the option.
        of: which tokens, in words.
    """
    parser.add_argument(
        "--tokens",
        default=default,
        metavar="A,B",
        help=f"{of}; k is 1,024 (default: %(default)s)",
    )


def add_new_tokens_option(parser: LineParser, *, least: int, of: str) -> None:
    """--new-tokens.

    Args:
        parser: of the command.
        least: number that can be asked for.
        of: which tokens, in words.
    """
    parser.add_argument(
        "--new-tokens",
        type=values.whole_number(least, 4096),
        default=64,
        metavar="N",
        help=f"{of} (default: %(default)s)",
    )


def add_weights_option(parser: LineParser, *, quantised: str) -> None:
    """--weights.

    Args:
        parser: of the command.
        quantised: what fp8 quantises, and on which condition, in words.
    """
    parser.add_argument(
        "--weights",
        choices=("full", "fp8"),
        default="full",
        help=f"fp8: {quantised} (default: %(default)s)",
    )


def add_repeats_option(parser: LineParser, *, default: int, of: str) -> None:
    """--repeats.

    Args:
        parser: of the command.
        default: of the option.
        of: what is repeated, in words.
    """
    parser.add_argument(
        "--repeats",
        type=values.whole_number(1, values.MOST_REPEATS),
        default=default,
        metavar="N",
        help=f"{of} (default: %(default)s)",
    )


def check_model(args: Namespace) -> None:
    """Refuse a model that is unknown or needs a GPU: UsageError."""
    import torch

    from videonsa.bench.random_model import MODELS

    if args.model not in MODELS:
        raise UsageError(f"--model {args.model}: want one of {', '.join(MODELS)}")
    if args.device == "cpu" and args.model != "tiny":
        raise UsageError(
            f"--model {args.model} with --device cpu: want tiny, the others need a GPU"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA GPU here: run this where there is one, or try --device cpu")


def result_path(args: Namespace, name: str) -> Path:
    """Where the result goes: `--out`, or the file of that name for this device.

    `UsageError` where `--out` is a folder.
    """
    import torch

    from videonsa.machine import device_name, slug

    if args.out is not None:
        if args.out.is_dir():
            raise UsageError(f"--out {args.out}: it is a folder: name a file")
        return Path(args.out)
    folder = RESULTS / slug(device_name(torch.device(args.device))) if RESULTS.is_dir() else Path()
    return folder / (f"{name}.json" if num_processes() == 1 else f"{name}_{num_processes()}.json")


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Write the result so far."""
    content = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_output(path, content.encode())


def show_result(
    args: Namespace, path: Path, result: dict[str, Any], text: Callable[[dict[str, Any]], str]
) -> None:
    """Say where it is, and print it."""
    report(f"written to {path}")
    if args.json:
        emit_json(result)
    else:
        emit(text(result))


def read_one(path: Path | None, *, key: str) -> dict[str, Any] | None:
    """The JSON that `--one` names: of one process, which several are compared with.

    Raises:
        UsageError: no such file, or one without `key`.
    """
    if path is None:
        return None
    with suppress(UsageError):
        result = read_json_object(path)
        if key in result:
            return result
    raise UsageError(f"--one {path}: want a JSON file that this command wrote with one process")
