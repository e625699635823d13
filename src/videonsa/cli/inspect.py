"""`videonsa inspect`: ask, and write a page of what the model looked at."""

import re
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from videonsa.cli import values
from videonsa.cli.answering import add_answering_options, load_model, system_option
from videonsa.cli.common import (
    Commands,
    add_command,
    add_sampling_options,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
    sampling_options,
    video_argument,
    write_output,
)
from videonsa.cli.compiling import compile_line
from videonsa.cli.generation import add_generation_options, generation_options
from videonsa.errors import UsageError


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "inspect",
        run=run,
        summary="Ask a question about a video, and write a page of what the model looked at for "
        "the answer: frames selected, gates and attention of each layer, against what no "
        "preference would give.",
        examples=(
            'videonsa inspect clip.mp4 "What flashed?" --out flash.html',
            'videonsa inspect talk.mkv "Who speaks first?" --model Enxin/VideoNSA --fps 1',
            'videonsa inspect clip.mp4 "What flashed?" --evidence 22-22.5 --data flash.json',
        ),
    )
    parser.add_argument(
        "video", type=values.name, metavar="VIDEO", help="a video, a folder of images or an image"
    )
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument(
        "--out",
        type=values.path,
        default=Path("inspect.html"),
        metavar="PAGE.html",
        help="the page; it needs no other file (default: %(default)s)",
    )
    parser.add_argument(
        "--data", type=values.path, metavar="FILE.json", help="also write what was measured"
    )
    parser.add_argument(
        "--evidence",
        type=_span,
        action="append",
        default=[],
        metavar="START-END",
        help="seconds in which the answer is seen, where you know them: they are marked, and told "
        "apart; may be given several times",
    )
    add_answering_options(parser)
    add_sampling_options(parser)
    add_generation_options(parser)


def _span(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+(?:\.\d*)?)-(\d+(?:\.\d*)?)", text.strip(), re.ASCII)
    start, end = map(float, found.groups()) if found else (0.0, 0.0)
    if not start < end:
        raise ArgumentTypeError(f"{text!r}: want seconds as START-END, such as 22-22.5")
    return start, end


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.video.chat import check_question
        from videonsa.video.source import open_source

        # What cannot be asked, read or written is told before weights are loaded.
        check_question(args.question)
        video = video_argument(args)
        open_source(video)
        _check_files(args)

        from videonsa.analysis.inspect_page import page
        from videonsa.analysis.inspect_words import sentences
        from videonsa.analysis.inspection import ask_and_inspect
        from videonsa.planning.defaults import change_sampling
        from videonsa.video.decode import read_video

        with compile_line():
            model = load_model(args)
            clip = read_video(
                video, sampling=change_sampling(model.sampling, **sampling_options(args))
            )
            _, inspection = ask_and_inspect(
                model,
                clip,
                args.question,
                video=Path(args.video).name,
                evidence=args.evidence,
                **system_option(args),
                **generation_options(args),
            )
        if args.data is not None:
            inspection.write(args.data)
        write_output(args.out, page(inspection).encode())
    for note in inspection.notes:
        report(f"note       {note}")
    if args.json:
        emit_json(inspection.to_json())
    else:
        emit(f"{inspection.answer}\n")
        for sentence in sentences(inspection):
            report(f"looked     {sentence}")
    report(f"page       {args.out}")
    return 0


def _check_files(args: Namespace) -> None:
    """Refuse files that cannot be written: UsageError."""
    for option, path, suffix in (("--out", args.out, ".html"), ("--data", args.data, ".json")):
        if path is None:
            continue
        if path.is_dir() or path.suffix.lower() != suffix:
            raise UsageError(f"{option} {path}: want the name of a file that ends with {suffix}")
        prepare_folder(path.parent)
