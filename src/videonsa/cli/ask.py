"""`videonsa ask`: load, ask, print."""

from argparse import Namespace

from videonsa.cli import values
from videonsa.cli.answering import (
    add_answering_options,
    add_reading_options,
    load_model,
    reading_options,
    report_computed,
    report_end,
    report_usage,
    speed_text,
)
from videonsa.cli.common import (
    Commands,
    add_command,
    emit,
    emit_json,
    quiet_libraries,
    report,
    video_argument,
)
from videonsa.cli.compiling import compile_line, told_to_first
from videonsa.cli.generation import add_generation_options, generation_options


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "ask",
        run=run,
        summary="Ask a question about a video. The answer is streamed to stdout; frames, tokens, "
        "attention and times are told on stderr.",
        examples=(
            'videonsa ask clip.mp4 "What colour is the square?"',
            'videonsa ask talk.mkv "Who speaks first?" --model Enxin/VideoNSA --fps 1',
            'videonsa ask film.mkv "What happens?" --start 60 --end 90 --num-frames 32',
            'videonsa ask frames/ "What happens?" --frame-rate 25 --max-tokens 8000 --json',
            'videonsa ask talk.mkv "Sum it up." --temperature 0.7 --top-p 0.9 --stop "###"',
        ),
    )
    parser.add_argument(
        "video", type=values.name, metavar="VIDEO", help="a video, a folder of images or an image"
    )
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    add_answering_options(parser)
    add_reading_options(parser)
    parser.add_argument(
        "--trace", action="store_true", help="print shapes at each stage (docs/tracing.md)"
    )
    add_generation_options(parser)


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.video.source import open_source

        # A video that cannot be read is told before weights are loaded.
        video = video_argument(args)
        open_source(video, decoder=args.decoder)

        from videonsa.inference.trace import Trace

        options = reading_options(args)
        trace = Trace(report) if args.trace else None
        with compile_line():
            model = load_model(args)
            if trace is not None:
                trace.stage("cli/ask", video=args.video, question=repr(args.question))
            stream = model.ask(
                video,
                args.question,
                stream=True,
                trace=trace,
                **generation_options(args),
                **options,
            )
        report_usage(stream.usage)
        for piece in told_to_first(stream):
            if not args.json:
                emit(piece)
        if args.json:
            asked = {"video": str(args.video), "question": args.question}
            emit_json(asked | stream.answer.to_dict())
        else:
            emit("\n")
        answer = stream.answer
        report(
            f"time       video read and encoded in {answer.video_seconds:.2f} s, "
            f"{speed_text(answer)}"
        )
        report_computed(answer)
        report_end(answer)
    return 0
