"""`videonsa bench decode`: time of a decoded token after a long cache."""

from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.bench.models import (
    add_new_tokens_option,
    add_repeats_option,
    add_result_options,
    add_tokens_option,
    add_weights_option,
    check_model,
    result_path,
    save_result,
    show_result,
)
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    parse_tokens,
    prepare_folder,
    quiet_libraries,
    report,
)
from videonsa.errors import UsageError
from videonsa.parsing import read_json_object

if TYPE_CHECKING:
    from videonsa.bench.decode import DecodeRequest

NAME = "decode_steps"
MOST_SECONDS = 86_400


def add_parser(what: Commands) -> None:
    """Register the command below `bench`."""
    parser = add_command(
        what,
        "decode",
        run=run,
        summary="Measure the time of a decoded token after a long cache, for one question and for "
        "several over one cache, against what memory allows; the first token of a second question; "
        "and transformers' own model beside it. Weights, keys and values are random.",
        examples=(
            "videonsa bench decode --tokens 8k,128k,1m --batch 1,4,16",
            "videonsa bench decode --tokens 8k,128k --batch 1,16 --peers",
            "videonsa bench decode --tokens 128k --batch 1 --weights fp8",
            "videonsa bench decode --model tiny --tokens 256 --batch 1,2 --device cpu",
        ),
    )
    add_tokens_option(parser, default="8k,128k,1m", of="tokens in the cache")
    parser.add_argument(
        "--batch",
        default="1,4,16",
        metavar="A,B",
        help="questions at a time, over one cache (default: %(default)s)",
    )
    add_new_tokens_option(parser, least=8, of="tokens of an answer")
    add_repeats_option(parser, default=3, of="timed answers")
    add_weights_option(parser, quantised="decoder layers quantised, on an RTX 40, an H100 or newer")
    _add_peers(parser)
    add_result_options(parser, NAME)


def _add_peers(parser: LineParser) -> None:
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also measure transformers' own model, with its dynamic cache and with its static one "
        "and torch.compile; each sample has a cache of its own",
    )
    parser.add_argument(
        "--peer-tokens",
        default="8k,128k",
        metavar="A,B",
        help="tokens in each of its caches (default: %(default)s)",
    )
    parser.add_argument(
        "--peer-seconds",
        type=values.whole_number(1, MOST_SECONDS),
        default=300,
        metavar="N",
        help="for all runs of each of its two ways, compiling included; what is left then is not "
        "run (default: %(default)s)",
    )


def run(args: Namespace) -> int:
    """Run the command. Runs that its file has of the same machine and code are kept."""
    with quiet_libraries(debug=args.debug):
        from videonsa.bench.decode import bench_decode

        request = _request(args)
        path = result_path(args, NAME if args.weights == "full" else f"{NAME}_{args.weights}")
        before = _earlier(path, request)
        prepare_folder(path.parent)
        result: dict[str, Any] = {}
        for result in bench_decode(request, before=before, progress=report):
            save_result(path, result)
    show_result(args, path, result, _text)
    return 0


def _request(args: Namespace) -> "DecodeRequest":
    import torch

    from videonsa.bench.decode import DecodeRequest
    from videonsa.models.checkpoints.quantised import check_weights

    check_model(args)
    device = torch.device(args.device)
    check_weights(args.weights, device)
    peers = args.peer_tokens.split(",") if args.peers else []
    return DecodeRequest(
        model=args.model,
        tokens=tuple(parse_tokens(text, "--tokens") for text in args.tokens.split(",")),
        batches=tuple(_batch(text) for text in args.batch.split(",")),
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        weights=args.weights,
        baseline_tokens=tuple(parse_tokens(text, "--peer-tokens") for text in peers),
        baseline_seconds=args.peer_seconds,
        device=device,
    )


def _batch(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 64:
        raise UsageError(f"--batch {text!r}: want numbers from 1 to 64, such as 1,4,16")
    return int(text)


def _earlier(path: Path, request: "DecodeRequest") -> dict[str, Any] | None:
    """What the file holds of the same request on the same machine, commit and code.

    `UsageError` if something else stands there than a result of this command.
    """
    from videonsa.bench.decode import FORMAT
    from videonsa.machine import measurement_facts

    if not path.exists():
        return None
    result: dict[str, Any] = {}
    with suppress(UsageError):
        result = read_json_object(path)
    if result.get("format") != FORMAT:
        raise UsageError(
            f"--out {path}: it holds something else than a result of this command: name another "
            "file"
        )
    machine = {**measurement_facts(request.device), "date": None}
    wanted = {
        "model": request.model,
        "weights": request.weights,
        "new_tokens": request.new_tokens,
        "repeats": request.repeats,
    }
    same = {key: result.get(key) for key in wanted} == wanted
    return result if same and {**result["machine"], "date": None} == machine else None


def _text(result: dict[str, Any]) -> str:
    from videonsa.bench.decode import describe

    head = f"{result['model']}, copies at {result['copy_tb_per_s']:.2f} TB/s\n"
    return head + "".join(f"  {describe(run)}\n" for run in result["runs"])
