"""`videonsa ask`: load, ask, print."""

from argparse import Namespace
from typing import TYPE_CHECKING

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    add_command,
    add_fit_options,
    add_fresh_gates_option,
    add_model_options,
    add_sampling_options,
    add_weights_option,
    attention_text,
    emit,
    emit_json,
    quiet_libraries,
    report,
    sampling_options,
    video_argument,
)
from videonsa.cli.generation import (
    add_generation_options,
    generation_options,
    generation_text,
)

if TYPE_CHECKING:
    from videonsa.inference.answer import Answer, Usage


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
    add_model_options(parser)
    add_weights_option(parser)
    add_fresh_gates_option(parser)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU)")
    parser.add_argument(
        "--device-map",
        choices=("auto",),
        help="spread the layers over the GPUs, for a model larger than one GPU",
    )
    add_sampling_options(parser)
    add_fit_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system message (default: Qwen's)")
    parser.add_argument(
        "--decoder",
        choices=("cpu", "gpu"),
        default="cpu",
        help="gpu: decode on an NVIDIA GPU with torchcodec; not tested yet (default: cpu)",
    )
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

        from videonsa.inference.engine import load
        from videonsa.inference.trace import Trace
        from videonsa.planning.devices import parse_memory

        memory = None if args.memory is None else parse_memory(args.memory)
        trace = Trace(report) if args.trace else None
        model = load(
            args.model,
            base=args.base,
            revision=args.revision,
            method=args.attention,
            fresh_gates=args.fresh_gates,
            device=args.device,
            device_map=args.device_map,
            dtype=args.dtype,
            weights=args.weights,
        )
        if trace is not None:
            trace.stage("cli/ask", video=args.video, question=repr(args.question))
        stream = model.ask(
            video,
            args.question,
            stream=True,
            fit=args.fit,
            memory=memory,
            decoder=args.decoder,
            trace=trace,
            **({} if args.system is None else {"system": args.system}),
            **generation_options(args),
            **sampling_options(args),
        )
        _report_usage(stream.usage)
        for piece in stream:
            if not args.json:
                emit(piece)
        if args.json:
            asked = {"video": str(args.video), "question": args.question}
            emit_json(asked | stream.answer.to_dict())
        else:
            emit("\n")
        _report_speed(stream.answer)
    return 0


def _report_usage(usage: "Usage") -> None:
    report(
        f"frames     {usage.num_frames} of {usage.width}x{usage.height}, "
        f"{usage.times[0]:.2f} s to {usage.times[-1]:.2f} s"
    )
    report(
        f"tokens     {usage.video_tokens} video + {usage.prompt_tokens - usage.video_tokens} text "
        f"= {usage.prompt_tokens} of {usage.context}"
    )
    report(f"attention  {attention_text(usage)}")
    report(f"generation {generation_text(usage.generation)}")
    for note in usage.notes:
        report(f"note       {note}")
    for warning in usage.warnings:
        report(f"warning    {warning}")


def _report_speed(answer: "Answer") -> None:
    speed = answer.tokens_per_second
    later = "" if speed is None else f", then {speed:.1f} tokens/s"
    report(
        f"time       video read and encoded in {answer.video_seconds:.2f} s, "
        f"first token after {answer.first_token_seconds:.2f} s{later}"
    )
    if answer.stop is not None:
        report(f"note       ended before {answer.stop!r}")
    if answer.finish == "length":
        report(f"note       cut at {answer.new_tokens} tokens: raise --max-new-tokens for more")
