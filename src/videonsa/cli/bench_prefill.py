"""`videonsa bench prefill`: time to the first token of a whole model, stage by stage."""

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli.common import (
    Commands,
    add_command,
    emit,
    emit_json,
    parse_tokens,
    prepare_folder,
    quiet_libraries,
    report,
    write_output,
)
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.bench.prefill import PrefillRequest

RESULTS = Path("benchmarks/results")
FILE = "prefill.json"


def add_parser(what: Commands) -> None:
    """Register the command below `bench`."""
    parser = add_command(
        what,
        "prefill",
        run=run,
        summary="Time and peak memory of vision tower, prefill and the next token, of a model of "
        "published shape with random weights; NSA and dense.",
        examples=(
            "videonsa bench prefill --model 7B --tokens 32k,128k",
            "videonsa bench prefill --model 7B --tokens 128k --frame 168x280 --peers",
            "videonsa bench prefill --model tiny --tokens 256 --frame 56x56 --device cpu",
        ),
    )
    parser.add_argument(
        "--model", default="7B", metavar="SIZE", help="3B, 7B, 32B, 72B or tiny (default: 7B)"
    )
    parser.add_argument(
        "--tokens",
        default="32k,128k",
        metavar="A,B",
        help="tokens of the video; k is 1,024 (default: %(default)s)",
    )
    parser.add_argument(
        "--frame",
        default="224x224",
        metavar="HxW",
        help="size of a frame in pixels, multiples of 28 (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="timed runs (default: %(default)s)"
    )
    parser.add_argument("--peers", action="store_true", help="also transformers' own model")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the JSON (default: {RESULTS}/GPU/{FILE} where that folder exists, else {FILE})",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="a CPU takes the tiny model"
    )


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.bench.prefill import bench_prefill

        request = _request(args)
        path = args.out or _default_path(request)
        prepare_folder(path.parent)
        result: dict[str, Any] = {}
        for result in bench_prefill(request, progress=report):
            content = json.dumps(result, indent=2, allow_nan=False) + "\n"
            write_output(path, content.encode())
    report(f"written to {path}")
    if args.json:
        emit_json(result)
    else:
        emit(_text(result))
    return 0


def _request(args: Namespace) -> "PrefillRequest":
    import torch

    from videonsa.bench.prefill import PrefillRequest
    from videonsa.bench.random_model import MODELS

    if args.model not in MODELS:
        raise UsageError(f"--model {args.model}: want one of {', '.join(MODELS)}")
    if args.repeats < 1:
        raise UsageError(f"--repeats {args.repeats}: want at least 1")
    if args.device == "cpu" and args.model != "tiny":
        raise UsageError(
            f"--model {args.model} with --device cpu: want tiny, the others need a GPU"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA GPU here: run this where there is one, or try --device cpu")
    return PrefillRequest(
        model=args.model,
        tokens=tuple(parse_tokens(text, "--tokens") for text in args.tokens.split(",")),
        frame=_frame(args.frame),
        repeats=args.repeats,
        peers=args.peers,
        device=torch.device(args.device),
    )


def _frame(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(s.isdecimal() and int(s) and int(s) % 28 == 0 for s in sides):
        raise UsageError(f"--frame {text!r}: want HEIGHTxWIDTH in multiples of 28, such as 224x224")
    return int(sides[0]), int(sides[1])


def _default_path(request: "PrefillRequest") -> Path:
    from videonsa.bench.machine import device_name, slug

    if RESULTS.is_dir():
        return RESULTS / slug(device_name(request.device)) / FILE
    return Path(FILE)


def _text(result: dict[str, Any]) -> str:
    lines = []
    for length in result["lengths"]:
        lines.append(f"{result['model']}, {length['tokens']:,} video tokens\n")
        lines += [f"  {stage['name']:<34} {_numbers(stage)}\n" for stage in length["stages"]]
    return "".join(lines)


def _numbers(stage: dict[str, Any]) -> str:
    if stage["error"] is not None:
        return str(stage["error"])
    parts = [f"{stage['ms']:10.1f} ms"]
    if stage.get("attention_ms") is not None:
        parts.append(f"attention {stage['attention_ms']:.1f} ms")
    if stage["peak_gb"] is not None:
        parts.append(f"peak {stage['peak_gb']:.1f} GB")
    return "   ".join(parts)
