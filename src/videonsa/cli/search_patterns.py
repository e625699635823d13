"""`videonsa methods search`: patterns of a model's heads, searched on a video."""

from argparse import Namespace
from collections import Counter

from videonsa.cli import values
from videonsa.cli.answering import (
    add_answering_options,
    add_reading_options,
    load_model,
    reading_options,
    report_usage,
)
from videonsa.cli.common import (
    Commands,
    add_command,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
    video_argument,
    write_output,
)
from videonsa.errors import UsageError

SEARCHED = "minference"
"""The method whose patterns are searched."""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "search",
        run=run,
        summary="Search the head patterns of minference on a video: one prompt is read densely, "
        "and each head gets the columns and offsets that keep most of its attention. The file is "
        "what --method minference:patterns=FILE reads.",
        examples=(
            "videonsa methods search minference talk.mkv --model Qwen/Qwen2.5-VL-7B-Instruct "
            "--out heads.json",
            "videonsa methods search minference talk.mkv --max-tokens 16000 --out heads.json",
        ),
    )
    parser.add_argument("searched", choices=(SEARCHED,), metavar="METHOD", help=SEARCHED)
    parser.add_argument("video", type=values.name, metavar="VIDEO", help="as for 'videonsa ask'")
    parser.add_argument(
        "--out", type=values.path, required=True, metavar="FILE", help="the JSON file to write"
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="the end of the prompt (default: that the video be described)",
    )
    parser.add_argument(
        "--first-row",
        type=values.whole_number(1),
        metavar="N",
        help="score the tokens from number N on (default: 2500)",
    )
    add_answering_options(parser)
    add_reading_options(parser)


def run(args: Namespace) -> int:
    """Run the command."""
    if args.method not in (None, "dense"):
        raise UsageError(
            f"--method {args.method}: patterns are searched under dense attention: leave it out"
        )
    args.method = "dense"
    with quiet_libraries(debug=args.debug):
        from videonsa.video.source import open_source

        video = video_argument(args)
        open_source(video, decoder=args.decoder)
        prepare_folder(args.out.parent)

        from videonsa.inference.head_patterns import search_head_patterns

        asked = {"question": args.question, "first_row": args.first_row}
        found, usage = search_head_patterns(
            load_model(args),
            video,
            name=args.video,
            **{name: value for name, value in asked.items() if value is not None},
            **reading_options(args),
        )
        write_output(args.out, found.to_json().encode())
        report_usage(usage)
        heads = Counter(pair for layer in found.sizes for pair in layer)
        if args.json:
            counts = [[*pair, count] for pair, count in heads.most_common()]
            emit_json({"file": str(args.out), "layers": len(found.sizes), "heads": counts})
        for (vertical, slash), count in heads.most_common():
            report(f"heads      {count} keep {vertical} columns and {slash} offsets")
        report(f"written    {args.out}: --method {SEARCHED}:patterns={args.out}")
    return 0
