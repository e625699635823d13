"""`videonsa bench train`: what a training step costs, on one GPU or shared by several."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.bench.models import (
    add_model_options,
    add_repeats_option,
    check_model,
    read_one,
    result_path,
    save_result,
    show_result,
)
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    parse_frame,
    parse_tokens,
    prepare_folder,
    quiet_libraries,
    report,
)
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.bench.training import TrainRequest

NAME = "train"
PEAKS = {"H100": 989.0, "H200": 989.0}
"""bf16 TFLOP/s without sparsity of GPUs whose name has this in it, from their data sheets."""


def add_parser(what: Commands) -> None:
    """Register the command below `bench`."""
    parser = add_command(
        what,
        "train",
        run=run,
        summary="Measure time and peak memory of training steps of a published shape with random "
        "weights, NSA and dense: forward and backward of decoder layers, and whole steps with "
        "vision tower and optimizer. Under torchrun the processes share the sequence (context "
        "parallelism), or have one each.",
        examples=(
            "videonsa bench train --model 7B --tokens 16k,36k,128k",
            "videonsa bench train --model 7B --tokens 36k --layers 8 --parts step",
            "torchrun --nproc-per-node 2 -m videonsa bench train --tokens 128k --parts layers "
            "--fsdp --one train.json",
            "torchrun --nproc-per-node 2 -m videonsa bench train --tokens 36800 --layers 28 "
            "--parts step --sequence 1 --fsdp --no-dense",
            "videonsa bench train --model tiny --tokens 256 --device cpu",
        ),
    )
    _add_options(parser)


def _add_options(parser: LineParser) -> None:
    parser.add_argument(
        "--tokens",
        default="16k,36k,128k",
        metavar="A,B",
        help="tokens of the video; k is 1,024 (default: %(default)s); the whole step is measured "
        "up to 36k",
    )
    parser.add_argument(
        "--parts",
        default="layers,step",
        metavar="A,B",
        help="layers: decoder layers; step: the whole step (default: %(default)s)",
    )
    parser.add_argument(
        "--layers",
        type=values.whole_number(1),
        metavar="N",
        help="decoder layers (default: those of --one, else as many as fit with optimizer state, "
        "by a measurement of one layer)",
    )
    parser.add_argument(
        "--frame",
        default="224x224",
        metavar="HxW",
        help="size of a frame in pixels, multiples of 28 (default: %(default)s)",
    )
    add_repeats_option(parser, default=2, of="timed steps")
    parser.add_argument(
        "--sequence",
        type=values.whole_number(1),
        metavar="N",
        help="processes that share a sequence; 1: each has one of its own (default: all share one)",
    )
    parser.add_argument(
        "--fsdp",
        action="store_true",
        help="also shard weights, gradients and optimizer state (default: every process has all)",
    )
    parser.add_argument(
        "--peak-tflops",
        type=values.positive_number,
        metavar="N",
        help="bf16 peak of one device, for MFU (default: 989 on H100 and H200, else no MFU)",
    )
    add_model_options(parser, NAME)


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.bench.training import bench_train

        request = _request(args)
        path = result_path(args, NAME)
        prepare_folder(path.parent)
        results: list[dict[str, Any]] = []

        def save(result: dict[str, Any]) -> None:
            results[:] = [result]
            save_result(path, result)

        is_first = bench_train(request, progress=report, save=save)
    if not is_first:
        return 0
    if not results:
        raise UsageError(f"--tokens {args.tokens}: none is measured in --parts {args.parts}")
    show_result(args, path, results[0], _text)
    return 0


def _request(args: Namespace) -> "TrainRequest":
    from videonsa.bench.random_model import MODELS
    from videonsa.bench.training import PARTS, TrainRequest

    check_model(args)
    most = MODELS[args.model].num_layers
    if args.layers is not None and args.layers > most:
        raise UsageError(f"--layers {args.layers}: the {args.model} model has {most}")
    wanted = args.parts.split(",")
    parts = tuple(part for part in PARTS if part in wanted)
    if unknown := set(wanted) - set(PARTS):
        raise UsageError(f"--parts {min(unknown)}: want some of {', '.join(PARTS)}")
    return TrainRequest(
        model=args.model,
        tokens=tuple(parse_tokens(text, "--tokens") for text in args.tokens.split(",")),
        parts=parts,
        layers=args.layers,
        frame=parse_frame(args.frame),
        dense=not args.no_dense,
        sequence=args.sequence,
        fsdp=args.fsdp,
        repeats=args.repeats,
        peak_tflops=args.peak_tflops or _peak(args.device),
        one=read_one(args.one, key="runs"),
        on_gpu=args.device == "cuda",
    )


def _peak(device: str) -> float | None:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for gpu, peak in PEAKS.items() if gpu in name), None)


def _text(result: dict[str, Any]) -> str:
    from videonsa.bench.training import run_line

    of = f"{result['model']}, {result['processes']} processes, {result['machine']['device']}"
    lines = [f"{of}\n", *(f"  {run_line(run)}\n" for run in result["runs"])]
    lines += [
        f"  {ratio['part']}, {ratio['tokens']} tokens, {ratio['layers']} layers: NSA is "
        f"{ratio['dense_over_nsa']:.2f}x as fast as dense\n"
        for ratio in result["ratios"]
    ]
    return "".join(lines)
