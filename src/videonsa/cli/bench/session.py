"""`videonsa bench session`: open a video, ask, ask again, extend, save and load."""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.bench.models import (
    add_new_tokens_option,
    add_repeats_option,
    add_result_options,
    add_tokens_option,
    check_model,
    result_path,
    save_result,
    show_result,
)
from videonsa.cli.common import (
    Commands,
    add_command,
    parse_frame,
    parse_tokens,
    prepare_folder,
    quiet_libraries,
    report,
)
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.bench.session import SessionRequest

NAME = "session"


def add_parser(what: Commands) -> None:
    """Register the command below `bench`."""
    parser = add_command(
        what,
        "session",
        run=run,
        summary="Measure a session on a model of published shape with random weights: open a video "
        "file and made-up frames of given lengths, a question, another one, a follow-up, two more "
        "frames, save and load (exact and int8) beside the speed of the disk.",
        examples=(
            "videonsa bench session --tokens 128k",
            "videonsa bench session --tokens 128k --video none --folder /data",
            "videonsa bench session --model tiny --tokens 256 --device cpu --video none",
        ),
    )
    add_tokens_option(parser, default="128k", of="tokens of made-up videos, or 'none'")
    parser.add_argument(
        "--video",
        metavar="FILE",
        help="the file to open; 'none' leaves it out (default: 10 seconds of 720p, rendered once "
        "into the temporary folder)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        default=2.0,
        metavar="N",
        help="frames of the file to sample per second (default: %(default)s)",
    )
    parser.add_argument(
        "--frame",
        default="224x224",
        metavar="HxW",
        help="size of made-up frames in pixels, a square of a multiple of 28; a frame of the file "
        "has no more pixels (default: %(default)s)",
    )
    add_new_tokens_option(parser, least=2, of="most tokens of an answer")
    add_repeats_option(parser, default=3, of="timed runs of a question or extension")
    parser.add_argument(
        "--folder",
        type=values.path,
        metavar="FOLDER",
        help="where sessions are saved, on the disk to measure (default: the temporary folder)",
    )
    add_result_options(parser, NAME)


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.bench.session import bench_session

        request = _request(args)
        path = result_path(args, NAME)
        prepare_folder(path.parent)
        result: dict[str, Any] = {}
        for result in bench_session(request, progress=report):
            save_result(path, result)
    show_result(args, path, result, _text)
    return 0


def _request(args: Namespace) -> "SessionRequest":
    import torch

    from videonsa.bench.session import SessionRequest

    check_model(args)
    tokens = [] if args.tokens == "none" else args.tokens.split(",")
    height, width = parse_frame(args.frame)
    if height != width:
        raise UsageError(f"--frame {args.frame}: want a square such as 224x224")
    folder = Path(args.folder or tempfile.gettempdir())
    if not folder.is_dir():
        raise UsageError(f"--folder {folder}: no such folder: name one that exists")
    if not tokens and args.video == "none":
        raise UsageError("--tokens none with --video none: nothing is left to measure")
    return SessionRequest(
        model=args.model,
        video=_video(args.video),
        fps=args.fps,
        tokens=tuple(parse_tokens(text, "--tokens") for text in tokens),
        frame=(height, width),
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        folder=folder,
        device=torch.device(args.device),
    )


def _video(given: str | None) -> Path | None:
    from videonsa.bench.sample_video import sample_clip
    from videonsa.video.decode import probe

    if given == "none":
        return None
    if given is not None:
        probe(given)  # a video that cannot be read is told before weights are made
        return Path(given)
    report("the video: 10 seconds of 720p, rendered unless it is there")
    return sample_clip()


def _text(result: dict[str, Any]) -> str:
    from videonsa.bench.session import describe

    lines = []
    for video in result["videos"]:
        lines.append(f"{result['model']}, {video['video']}: {video['tokens']} tokens\n")
        lines += [f"  {describe(stage)}\n" for stage in video["stages"]]
    return "".join(lines)
