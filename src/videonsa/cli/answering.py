"""What `ask`, `chat` and `watch` share: options of the model, loading it, what is told."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from videonsa.cli.common import (
    LineParser,
    add_checkpoint_options,
    add_fit_options,
    add_fresh_gates_option,
    add_method_option,
    add_sampling_options,
    add_weights_option,
    attention_text,
    kept_text,
    report,
    sampling_options,
)
from videonsa.cli.generation import generation_text

if TYPE_CHECKING:
    from videonsa.inference.answer import Answer
    from videonsa.inference.engine import VideoQA
    from videonsa.inference.usage import Usage


def add_answering_options(parser: LineParser, *, method: bool = True) -> None:
    """The model, how it is loaded, and --system.

    Args:
        parser: of the command.
        method: --method and --fresh-gates too; else the model attends as it was trained.
    """
    add_checkpoint_options(parser)
    if method:
        add_method_option(parser)
        add_fresh_gates_option(parser)
    parser.set_defaults(method=None, fresh_gates=False)
    add_weights_option(parser)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU)")
    parser.add_argument(
        "--device-map",
        choices=("auto",),
        help="spread the layers over the GPUs, for a model larger than one GPU",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message (default: Qwen's)")


def add_reading_options(parser: LineParser) -> None:
    """How a video is read: its frames, what makes them fit, and --decoder."""
    add_sampling_options(parser)
    add_fit_options(parser)
    parser.add_argument(
        "--decoder",
        choices=("cpu", "gpu"),
        default="cpu",
        help="gpu: decode on an NVIDIA GPU with torchcodec; not tested yet (default: cpu)",
    )


def load_model(args: Namespace) -> "VideoQA":
    """The model of `add_answering_options`."""
    from videonsa.inference.engine import load

    return load(
        args.model,
        base=args.base,
        revision=args.revision,
        method=args.method,
        fresh_gates=args.fresh_gates,
        device=args.device,
        device_map=args.device_map,
        dtype=args.dtype,
        weights=args.weights,
    )


def reading_options(args: Namespace) -> dict[str, Any]:
    """The options of `add_reading_options`, and --system, by the keywords of `VideoQA.ask`."""
    from videonsa.planning.devices import parse_memory

    return {
        "fit": args.fit,
        "memory": None if args.memory is None else parse_memory(args.memory),
        "decoder": args.decoder,
        **system_option(args),
        **sampling_options(args),
    }


def system_option(args: Namespace) -> dict[str, Any]:
    """--system, where it was given."""
    return {} if args.system is None else {"system": args.system}


def report_usage(usage: "Usage") -> None:
    """What the model is given for an answer."""
    report(
        f"frames     {usage.num_frames} of {usage.width}x{usage.height}, "
        f"{usage.times[0]:.2f} s to {usage.times[-1]:.2f} s"
    )
    report(
        f"tokens     {kept_text(usage.video_tokens, usage.encoded_tokens)} video + "
        f"{usage.prompt_tokens - usage.video_tokens} text = {usage.prompt_tokens} of "
        f"{usage.context}"
    )
    report(f"attention  {attention_text(usage)}")
    report(f"generation {generation_text(usage.generation)}")
    for note in usage.notes:
        report(f"note       {note}")
    for warning in usage.warnings:
        report(f"warning    {warning}")


def report_computed(answer: "Answer") -> None:
    """What the layers held of the video, and how much attention was computed."""
    if (computed := answer.usage.computed) is not None:
        report(f"computed   {computed.describe()}")


def report_end(answer: "Answer") -> None:
    """Why an answer ended, where it did not end by itself."""
    if answer.stop is not None:
        report(f"note       ended before {answer.stop!r}")
    if answer.finish == "length":
        report(f"note       cut at {answer.new_tokens} tokens: raise --max-new-tokens for more")


def speed_text(answer: "Answer") -> str:
    """How soon and how fast the tokens came."""
    speed = answer.tokens_per_second
    later = "" if speed is None else f", then {speed:.1f} tokens/s"
    return f"first token after {answer.first_token_seconds:.2f} s{later}"
