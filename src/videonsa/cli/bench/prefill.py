"""`videonsa bench prefill`: time to the first token of a whole model, stage by stage."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.bench.models import (
    add_model_options,
    add_repeats_option,
    add_tokens_option,
    add_weights_option,
    check_model,
    result_path,
    save_result,
    show_result,
)
from videonsa.cli.bench.prefill_shared import check_options, run_shared
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
from videonsa.env import num_processes
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.bench.prefill import PrefillRequest
    from videonsa.bench.video_reading import ReadingRequest

NAME = "prefill"
ALL, DENSE, NSA = "all", "dense", "nsa"


def add_parser(what: Commands) -> None:
    """Register the command below `bench`."""
    parser = add_command(
        what,
        "prefill",
        run=run,
        summary="Measure time and peak memory to the first token of a model of published shape "
        "with random weights, stage by stage: vision tower, prefill and next token for given "
        "lengths, NSA and dense; and a video file from reading to the answer. Under torchrun the "
        "processes prefill each sequence together.",
        examples=(
            "videonsa bench prefill --model 7B --tokens 32k,128k",
            "videonsa bench prefill --model 7B --tokens 32k --video talk.mp4 --fps 2 --workers 8",
            "videonsa bench prefill --model 7B --tokens 128k --frame 224x224,168x280 --peers",
            "videonsa bench prefill --model 7B --tokens 128k --video none --method all",
            "videonsa bench prefill --model 7B --tokens 512k,1m --video none --no-dense",
            "torchrun --nproc-per-node 2 -m videonsa bench prefill --tokens 128k "
            "--one prefill.json",
            "videonsa bench prefill --model tiny --tokens 256 --device cpu --video none",
        ),
    )
    _add_sizes(parser)
    add_repeats_option(parser, default=3, of="timed runs")
    _add_reading(parser)
    parser.add_argument(
        "--regimes",
        default="random,coherent",
        metavar="A,B",
        help="random: neighbouring tokens have nothing in common; coherent: they select mostly the "
        "same blocks (default: %(default)s)",
    )
    parser.add_argument(
        "--rows-per-chunk",
        type=values.whole_number(0),
        metavar="N",
        help="tokens that go through the layers at a time, with NSA; 0 is all (default: the model "
        "chooses)",
    )
    add_weights_option(
        parser,
        quantised="decoder layers and vision tower quantised, on an RTX 40, an H100 or newer; one "
        "process",
    )
    _add_compared(parser)
    add_model_options(parser, NAME)


def _add_compared(parser: LineParser) -> None:
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME[:KEY=VALUE,...]",
        help="also measure this method, beside NSA and dense attention; may be given several "
        "times; 'all' is every method that 'videonsa methods' lists, as it is published",
    )
    parser.add_argument("--peers", action="store_true", help="also measure transformers' own model")


def _add_sizes(parser: LineParser) -> None:
    add_tokens_option(parser, default="32k,128k", of="tokens of the video")
    parser.add_argument(
        "--frame",
        default="224x224",
        metavar="HxW[,HxW]",
        help="size of a frame in pixels, multiples of 28; for further sizes only the vision tower "
        "is measured, at the longest length (default: %(default)s)",
    )


def _add_reading(parser: LineParser) -> None:
    parser.add_argument(
        "--video",
        metavar="FILE",
        help="the file to read; 'none' skips reading (default: 10 minutes of 720p, rendered once "
        "into the temporary folder)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        default=1.0,
        metavar="N",
        help="frames to sample per second (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=values.integer,
        metavar="N",
        help="threads that read it, compared with one (default: one per core, at most 8)",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.bench.prefill import bench_prefill

        if num_processes() > 1:
            check_options(args)
            args.video = "none"
        elif args.one is not None:
            raise UsageError(f"--one {args.one} with one process: want several, by torchrun")
        request = _request(args)
        path = result_path(args, NAME if args.weights == "full" else f"{NAME}_{args.weights}")
        if num_processes() > 1:
            return run_shared(request, args, path)
        prepare_folder(path.parent)
        result: dict[str, Any] = {}
        for result in bench_prefill(request, progress=report):
            save_result(path, result)
    show_result(args, path, result, _text)
    return 0


def _request(args: Namespace) -> "PrefillRequest":
    import torch

    from videonsa.bench.attention_inputs import REGIMES
    from videonsa.bench.op_registry import pick
    from videonsa.bench.prefill import PrefillRequest
    from videonsa.models.checkpoints.quantised import check_weights

    check_model(args)
    device = torch.device(args.device)
    check_weights(args.weights, device)
    return PrefillRequest(
        model=args.model,
        weights=args.weights,
        tokens=tuple(parse_tokens(text, "--tokens") for text in args.tokens.split(",")),
        frames=_frames(args),
        regimes=pick(args.regimes.split(","), {name: name for name in REGIMES}, "regimes"),
        repeats=args.repeats,
        dense=not args.no_dense,
        methods=_methods(args.method),
        baseline=args.peers,
        rows_per_chunk=args.rows_per_chunk,
        reading=_reading(args),
        device=device,
    )


def _methods(given: Sequence[str]) -> tuple[str, ...]:
    """Those of --method; NSA and dense attention are measured anyway.

    Raises:
        UsageError: one that there is not.
    """
    from videonsa.models.methods.registry import METHODS, read_method

    texts = [one for text in given for one in (METHODS if text == ALL else (text,))]
    for text in texts:
        read_method(text)
    return tuple(dict.fromkeys(text for text in texts if text not in (DENSE, NSA)))


def _frames(args: Namespace) -> tuple[tuple[int, int], ...]:
    return tuple(parse_frame(text) for text in args.frame.split(","))


def _reading(args: Namespace) -> "ReadingRequest | None":
    from videonsa.bench.sample_video import sample_video
    from videonsa.bench.video_reading import ReadingRequest
    from videonsa.machine import usable_cores
    from videonsa.video.decode import MOST_WORKERS, probe

    if args.video == "none":
        return None
    workers = min(usable_cores(), MOST_WORKERS) if args.workers is None else args.workers
    height, width = _frames(args)[0]
    given = ReadingRequest(
        video=Path(args.video or ""), fps=args.fps, workers=workers, max_pixels=height * width
    )
    if args.video is not None:
        probe(args.video)  # a video that cannot be read is told before weights are made
        return given
    report("the video: 10 minutes of 720p, rendered unless it is there")
    return replace(given, video=sample_video())


def _text(result: dict[str, Any]) -> str:
    lines = []
    for length in result["lengths"]:
        height, width = length["frame"]
        lines.append(
            f"{result['model']}, {length['tokens']:,} video tokens, frames of {height}x{width}\n"
        )
        lines += [f"  {stage['name']:<44} {_numbers(stage)}\n" for stage in length["stages"]]
        lines += _speedups(length["stages"])
    if (video := result["video"]) is not None:
        lines.append(
            f"{result['model']}, {video['file']}: {video['frames']} frames of "
            f"{video['duration']:.0f} s, {video['tokens']:,} video tokens; {video['workers']} "
            f"workers read {video['workers_speedup']['median']:.1f}x as fast as one\n"
        )
        lines += [f"  {stage['name']:<44} {_numbers(stage)}\n" for stage in video["stages"]]
    return "".join(lines)


def _numbers(stage: dict[str, Any]) -> str:
    if stage["error"] is not None:
        return str(stage["error"])
    parts = [f"{stage['ms']:10.1f} ms"]
    if stage.get("attention_ms") is not None:
        parts.append(f"attention {stage['attention_ms']:.1f} ms, gates {stage['gates_ms']:.1f} ms")
    if stage["peak_gb"] is not None:
        parts.append(f"peak {stage['peak_gb']:.1f} GB")
    return "   ".join(parts)


def _speedups(stages: Sequence[dict[str, Any]]) -> list[str]:
    """Of each prefill over the dense one, with the share of attention that it computed."""
    found = {stage["name"]: stage for stage in stages if stage.get("attention_share") is not None}
    dense = found.get("prefill, dense")
    if dense is None or len(found) < 2:
        return []
    lines = ["\n  speed-up over dense attention, and query-key pairs computed of its\n"]
    for name, stage in found.items():
        speedup, share = dense["ms"] / stage["ms"], 100 * stage["attention_share"]
        lines.append(f"  {name:<44} {speedup:10.2f}x   {share:.3g} %\n")
    return lines
